"""Old import paths of public names work, with a deprecation message."""

import importlib

import pytest

import timm_lt


@pytest.mark.parametrize('old, new, names', [
    ('timm_lt.optim.closure', timm_lt.optim, ['BatchClosure']),
    ('timm_lt.optim.stepping', timm_lt.optim, ['StepResult', 'find_sharpness_aware', 'optimizer_step', 'set_epoch']),
    ('timm_lt.gkp.task', importlib.import_module('timm_lt.gkp'), ['GKP', 'encoder_parameters']),
    ('timm_lt.posthoc.correction', timm_lt.posthoc, ['PostHoc']),
])
def test_names_are_found_at_their_old_place(old, new, names):
    module = importlib.import_module(old)
    for name in names:
        with pytest.warns(DeprecationWarning, match=f'{old}.{name} has moved; import it from {new.__name__}'):
            assert getattr(module, name) is getattr(new, name)
    with pytest.raises(AttributeError, match='nothing'):
        module.nothing  # noqa: B018


@pytest.mark.parametrize('name, module', [
    ('SAM', 'sam'), ('ASAM', 'asam'), ('ImbSAM', 'imbsam'), ('SSESAM', 'ssesam'), ('FocalSAM', 'focalsam'),
    ('CCSAM', 'ccsam'), ('GSA', 'gsa'), ('SharpnessAware', 'engine'), ('BatchClosure', 'engine')])
def test_methods_lie_in_a_room_of_their_name(name, module):
    assert name in timm_lt.optim.__all__
    assert getattr(importlib.import_module(f'timm_lt.optim.{module}'), name) is getattr(timm_lt.optim, name)


@pytest.mark.parametrize('module, old, new', [
    ('timm_lt.two_stage', 'create_stage2', 'create_second_stage'),
    ('timm_lt.two_stage', 'list_stage2', 'list_second_stages'),
    ('timm_lt.two_stage', 'Stage2Method', 'SecondStageMethod'),
    ('timm_lt.two_stage', 'CCSAMStage2', 'CCSAMSecondStage'),
    ('timm_lt._registry', 'register_stage2', 'register_second_stage'),
    ('timm_lt.evaluate.metrics', 'correction_method', 'posthoc_method'),
])
def test_old_spellings_are_found_under_the_new_name(module, old, new):
    module = importlib.import_module(module)
    with pytest.warns(DeprecationWarning, match=f'{old} is now called {new}'):
        assert getattr(module, old) == getattr(module, new)
    with pytest.raises(AttributeError, match='nothing'):
        module.nothing  # noqa: B018

"""Number options: each method of a registry refuses NaN for every one that it declares, in the error's first words."""

import inspect
import typing

import pytest
import timm
import torch

import timm_lt.data
import timm_lt.finetune
import timm_lt.two_stage
from timm_lt._registry import FINETUNING, LOSSES, MIXINGS, OPTIMIZERS, SAMPLERS, SECOND_STAGES

COUNTS = [40, 9, 3]
TARGETS = torch.repeat_interleave(torch.arange(3), torch.tensor(COUNTS))


def create_optimizer(name, **options):
    counts = {'class_counts': COUNTS} if 'class_counts' in OPTIMIZERS.info(name).needs else {}
    return timm.optim.create_optimizer_v2([torch.nn.Parameter(torch.ones(2))], name, lr=0.1, **counts, **options)


def create_sampler(name, **options):
    needed = {'num_epochs': 8} if name == 'progressive' else {}
    return timm_lt.create_sampler(name, TARGETS, **needed | options)


CREATE = {
    LOSSES: lambda name, **options: timm_lt.create_loss(name, COUNTS, **options),
    MIXINGS: lambda name, **options: timm_lt.data.create_mixing(name, COUNTS, **options),
    SECOND_STAGES: lambda name, **options: timm_lt.two_stage.create_second_stage(name, COUNTS, **options),
    FINETUNING: lambda name, **options: timm_lt.finetune.create_method(name, **options),
    OPTIMIZERS: create_optimizer,
    SAMPLERS: create_sampler,
}


def number_options(factory):
    """Keyword-only options of a class and its bases that take a number."""
    for cls in factory.__mro__ if inspect.isclass(factory) else (factory,):
        init = cls.__dict__.get('__init__') if inspect.isclass(cls) else cls
        if init is None or not cls.__module__.startswith('timm_lt'):
            continue
        for name, parameter in inspect.signature(init).parameters.items():
            hint = typing.get_type_hints(init).get(name)
            kinds = set(typing.get_args(hint)) or {hint}
            if parameter.kind == parameter.KEYWORD_ONLY and kinds & {int, float}:
                yield name


CASES = sorted({
    (registry.kind, info.name, option): registry
    for registry in CREATE for info in registry.infos() for option in number_options(info.factory)}.items(),
    key=lambda item: item[0])


@pytest.mark.parametrize('registry, name, option', [
    pytest.param(registry, *key[1:], id='-'.join(key)) for key, registry in CASES])
def test_nan_is_refused(registry, name, option):
    with pytest.raises((ValueError, TypeError), match=option):
        CREATE[registry](name, **{option: float('nan')})


def test_options_are_found():
    found = {key[1:] for key, _ in CASES}
    assert {('ldam', 'scale'), ('gsam', 'alpha'), ('gsam', 'rho'), ('power', 'q'), ('remix', 'kappa')} <= found

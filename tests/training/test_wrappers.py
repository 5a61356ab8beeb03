"""Wrappers of compilation, precision, processes and training heads: unwrapped in every order, in runs of all kinds."""

import copy
import itertools
import json

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from timm_lt._unwrap import finished_model, plain_model
from timm_lt.models.bcl import BCLModel
from timm_lt.training import main

TINY = ['--dataset', 'timm_lt/digits', '--epochs', '1', '-b', '32', '--images-per-class', '12', '--imbalance-ratio',
        '4', '--workers', '0', '--quiet', '--val-fraction', '0.25', '--experiment', 'run']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def compiled(model, accelerator):
    return torch.compile(model, backend='eager')


def prepared(model, accelerator):
    return accelerator.prepare(model)


@pytest.mark.parametrize('order', itertools.permutations([compiled, prepared, lambda model, _: BCLModel(model)]))
def test_the_plain_model_is_found_in_every_order_and_computes_as_before(order):
    accelerator = Accelerator(cpu=True, mixed_precision='bf16')
    model = timm.create_model('test_resnet', num_classes=3).eval()
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = model(images)
    wrapped = model
    for wrap in order:
        wrapped = wrap(wrapped, accelerator)
    wrapped.eval()
    assert plain_model(wrapped) is model
    with torch.no_grad():
        assert wrapped(images).dtype == torch.float32  # still as Accelerate wrapped it
        assert finished_model(wrapped) is model and not {'forward', '_original_forward'} & set(vars(model))
        torch.testing.assert_close(model(images), expected, rtol=0, atol=0)
        torch.testing.assert_close(copy.deepcopy(model)(images), expected, rtol=0, atol=0)


def test_looking_for_the_plain_model_does_not_take_the_autocast_from_a_model_in_training():
    model = Accelerator(cpu=True, mixed_precision='bf16').prepare(timm.create_model('test_resnet', num_classes=3))
    forward = vars(model)['forward']
    assert plain_model(model) is model and vars(model)['forward'] is forward


@pytest.mark.parametrize('options', [
    ['--channels-last', '--torchcompile', 'eager', '--mixed-precision', 'bf16', '--model-ema', '--loss', 'bcl'],
    ['--channels-last', '--torchcompile', 'aot_eager', '--mixed-precision', 'bf16', '--stage2', 'crt',
     '--stage2-epochs', '1'],
    ['--channels-last', '--torchcompile', 'eager', '--mixed-precision', 'bf16', '--opt', 'gsa', '--gkp', '--sync-bn'],
], ids=['ema bcl', 'stage2', 'gkp'])
def test_compiled_bf16_channels_last_runs_end_with_a_hub_folder_that_loads(tmp_path, options):
    torch.compiler.reset()
    assert main([*TINY, '--model', 'test_resnet', '--img-size', '32', '--output', str(tmp_path), *options]) == 0
    assert 0 <= json.loads((tmp_path / 'run/metrics.json').read_text())['top1'] <= 100
    model = timm.create_model(f'local-dir:{tmp_path}/run/hub', pretrained=True)
    assert all(p.is_contiguous() for p in model.parameters())
    assert model.num_classes == 10

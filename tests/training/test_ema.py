"""The moving average of the weights: in a short run it forgets the initial weights, in a long one it does as asked."""

import json
import logging

import pytest
import torch
from accelerate.state import AcceleratorState

from timm_lt.training import build, main
from timm_lt.training.config import parse_args


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def averaged(updates, *options):
    """The average of 1 after so many updates that began at 0 and were 1 from the second one on: 1 - share of 0."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    ema = build.build_ema(parse_args(['--model-ema', *options]).model, model, updates)
    ema.update(model, 1)
    torch.nn.init.ones_(model.weight)
    for step in range(2, updates + 1):
        ema.update(model, step)
    return ema, ema.module.weight.item()


@pytest.mark.parametrize('updates', [10, 100, 1000])
def test_a_short_run_forgets_the_initial_weights(updates):
    ema, value = averaged(updates)
    assert ema.use_warmup and value > 0.98
    assert 0 < ema.get_decay(updates) < 0.9998


def test_a_long_run_keeps_the_decay_that_is_asked_for():
    ema, value = averaged(500, '--model-ema-decay', '0.99')
    assert not ema.use_warmup and ema.get_decay(500) == 0.99 and value == pytest.approx(1 - 0.99 ** 499, abs=1e-5)
    options = parse_args(['--model-ema']).model
    assert build.build_ema(options, torch.nn.Linear(1, 1), 22_000).use_warmup
    assert not build.build_ema(options, torch.nn.Linear(1, 1), 24_000).use_warmup
    always = parse_args(['--model-ema', '--model-ema-warmup']).model
    assert build.build_ema(always, torch.nn.Linear(1, 1), 24_000).use_warmup
    assert build.build_ema(parse_args([]).model, torch.nn.Linear(1, 1), 10) is None


def test_a_run_says_that_its_average_warms_up(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        assert main([
            '--dataset', 'timm_lt/digits', '--epochs', '1', '-b', '16', '--images-per-class', '8', '--imbalance-ratio',
            '2', '--workers', '0', '--experiment', 'run', '--model', 'test_resnet', '--img-size', '32', '--model-ema',
            '--output', str(tmp_path)]) == 0
    assert '--model-ema warms up' in caplog.text and 'of the initial weights after 3 updates' in caplog.text
    assert 'channels-last' in caplog.text
    metrics = json.loads((tmp_path / 'run/metrics.json').read_text())
    assert metrics['protocol']['weights'] == 'moving average, its decay warmed up'

"""A fixed sample of the runs of ``benchmarks/option_pairs.py``, without reports; the benchmark has all pairs."""

import importlib
import shlex
from pathlib import Path

import option_pairs
import pytest
import torch

COMMANDS = Path(__file__).with_name('option_pairs.txt').read_text().splitlines()


@pytest.mark.parametrize('command', COMMANDS, ids=range(len(COMMANDS)))
def test_options_together_train_or_are_refused_in_a_sentence(command, tmp_path, monkeypatch):
    monkeypatch.setattr(importlib.import_module('timm_lt.training.run'), 'write_ornaments', lambda *_: '')
    torch._dynamo.reset()
    option_pairs.run(shlex.split(command), tmp_path)


def test_array_leaves_out_refused_pairs():
    def is_possible(**values):
        return option_pairs.is_possible([values.get(name, '') for name in option_pairs.LEVELS])

    assert is_possible(loss='gala', opt='gsa --gkp')
    assert not is_possible(loss='bcl', mixup='0.8') and not is_possible(loss='poly', drw_epoch='0')
    assert is_possible(batch_size='7') and not is_possible(batch_size='7', mixup='0.8')

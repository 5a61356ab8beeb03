"""The example scripts run on tiny data."""

import importlib.util

import numpy as np
import pytest
from paths import ROOT
from PIL import Image

from timm_lt.training.outputs import RunFolder


@pytest.fixture(autouse=True)
def fresh_accelerate_state(monkeypatch):
    monkeypatch.setattr(RunFolder, 'write_report', lambda folder: None)  # its pictures cost more than the run
    yield
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)


def example(name):
    specification = importlib.util.spec_from_file_location(name, ROOT / 'docs' / 'examples' / f'{name}.py')
    module = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(module)
    return module


def test_fine_tuning_on_a_folder(tmp_path, capsys):
    generator = np.random.default_rng(0)
    for name, count in (('ant', 12), ('bee', 8)):
        (tmp_path / 'images' / name).mkdir(parents=True)
        for k in range(count):
            pixels = generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / 'images' / name / f'{k}.png')
    example('finetune_folder').main([
        str(tmp_path / 'images'), '--model', 'resnet20_cifar', '--from-scratch', '--epochs', '1', '--output',
        str(tmp_path), '--image', str(tmp_path / 'images' / 'ant' / '0.png')])
    figures, answer = capsys.readouterr().out.strip().splitlines()[-2:]
    assert 'top1' in figures and answer.split()[0] in ('ant', 'bee')


def test_comparing_three_losses(tmp_path, monkeypatch, capsys):
    compare = example('compare_losses')
    train = compare.timm_lt.training.main
    monkeypatch.setattr(
        compare.timm_lt.training, 'main', lambda options: train([*options, '--images-per-class', '20', '-b', '64']))
    compare.main(['--seeds', '0', '--epochs', '1', '--output', str(tmp_path)])
    page = (tmp_path / 'comparison.html').read_text()
    assert 'comparison.html' in capsys.readouterr().out and 'logit_adjustment' in page


def test_a_sam_method_in_a_plain_loop(capsys):
    example('sam_loop').main(['--epochs', '1', '--images-per-class', '24'])
    assert 'top1' in capsys.readouterr().out

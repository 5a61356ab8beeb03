"""Lines that a run prints while it trains."""

import csv
import logging
import re

import pytest
import torch
from accelerate.state import AcceleratorState
from image_files import save_image

from timm_lt.training import main
from timm_lt.training.console import EpochLines, duration
from timm_lt.training.meters import TrainMeter
from timm_lt.training.options import general_instead_of_digits, parse_options

TINY = ['--dataset', 'timm_lt/digits', '--epochs', '2', '-b', '32', '--images-per-class', '8', '--imbalance-ratio',
        '2', '--workers', '0', '--experiment', 'run', '--model', 'test_resnet', '--img-size', '32']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_each_epoch_prints_one_line_also_without_a_terminal(tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    assert main([*TINY, '--output', str(tmp_path), '--val-fraction', '0.2']) == 0
    lines = [record.message for record in caplog.records if record.message.startswith('epoch ')]
    assert len(lines) == 2
    assert re.fullmatch(
        r'epoch 1/2, loss [\d.]+, training: top1 [\d.]+ balanced [\d.]+ .*, '
        r'validation: top1 [\d.]+ balanced [\d.]+ .*, lr [\d.e-]+, [\d.]+ s, [\d.]+ s left', lines[0])
    assert lines[1].startswith('epoch 2/2, ') and not lines[1].endswith('left')
    header, figures = capsys.readouterr().out.split('\n')[1:3]
    assert header.split() == ['top1', 'balanced', 'many', 'medium', 'few', 'ece'] and len(figures.split()) == 6
    rows = list(csv.DictReader((tmp_path / 'run' / 'summary.csv').open()))
    assert f'validation: top1 {float(rows[0]["val_top1"]):.1f} balanced ' \
           f'{float(rows[0]["val_balanced_accuracy"]):.1f}' in lines[0]


def test_the_first_lines_name_images_network_and_device_as_a_person_would(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    assert main([*TINY, '--epochs', '1', '--output', str(tmp_path)]) == 0
    assert '54 training images of timm_lt/digits in 10 classes, 8 in the largest and 4 in the smallest' in caplog.text
    assert re.search(
        r'network test_resnet: [\d,]+ parameters, \S+ memory format\nloss balanced_softmax, optimizer sgd, sampler '
        r'instance_balanced\ndevice cpu\noutputs: ', caplog.text)
    assert not re.search(r'\(s\)|\(es\)|ClassDistribution', caplog.text)


def test_images_of_different_sizes_are_read_from_files_and_that_is_said_once(tmp_path, caplog):
    caplog.set_level(logging.INFO)
    for i in range(12):
        save_image(tmp_path / 'images' / 'ab'[i % 2] / f'{i}.png', 20 * i, size=(24 + i, 30))
    options = ['--dry-run', '--val-fraction', '0.3', '-b', '2', '--workers', '0', '--img-size', '32', '--model',
               'test_resnet', '--output', str(tmp_path / 'out')]
    assert main(['--data-dir', str(tmp_path / 'images'), *options]) == 0
    said = [r.message for r in caplog.records if 'are read from their files' in r.message]
    assert len(said) == 1
    assert re.search(r'because \S+ has \d\d x 30 pixels, the images before it \d\d x 30', said[0])
    assert [f'checking that {n} {part} images can be read' in caplog.text
            for part, n in (('training', 6), ('test', 2), ('validation', 4))] == [True] * 3


def test_the_digits_by_name_say_that_they_take_the_general_defaults():
    by_name = ['--dataset', 'timm_lt/digits']
    short = '--model resnet20_cifar --imbalance-ratio 50.0 --epochs 20 --warmup-epochs 2 --hflip 0.0 --lr 0.1'
    for options in (by_name, [*by_name, '--epochs', '5'], [*by_name, '--imbalance-ratio', '10']):
        assert general_instead_of_digits(parse_options(options)) == short
    for options in ([], ['--epochs', '5'], [*by_name, '--imbalance-ratio', '10', '--epochs', '5'], ['--data-dir', 'x']):
        assert general_instead_of_digits(parse_options(options)) == ''


def test_times_are_of_the_epochs_of_this_process(monkeypatch):
    now = iter([100.0, 110.0, 130.0])
    monkeypatch.setattr('timm_lt.training.console.time.monotonic', lambda: next(now))
    lines = EpochLines(10)
    row = {'train_loss': 1.0, 'train_top1': 50.0, 'lr': 0.1}
    assert lines.of(row | {'epoch': 6}) == 'epoch 7/10, loss 1, training: top1 50.0, lr 0.1, 10.0 s, 30.0 s left'
    assert lines.of(row | {'epoch': 7}).endswith('20.0 s, 30.0 s left')
    assert [duration(s) for s in (59.94, 60, 3599, 3600)] == ['59.9 s', '1 min 00 s', '59 min 59 s', '1 h 00 min']


def test_the_balanced_accuracy_is_the_mean_over_the_classes_that_were_seen():
    meter = TrainMeter({'many': torch.tensor([True, False, False])}, torch.device('cpu'))
    logits = torch.eye(3)[[0, 0, 0, 0]]
    meter.update(torch.tensor(1.0), [logits], [torch.tensor([0, 0, 0, 1])])
    figures = meter.compute()
    assert figures['train_top1'] == 75 and figures['train_balanced_accuracy'] == 50

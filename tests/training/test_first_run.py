"""What a newcomer's first runs rest on: a network chosen by the images, a dry run, early stopping, parts kept."""

import json
import logging
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from image_files import make_folder, save_image
from PIL import Image

from timm_lt.data import create_dataset
from timm_lt.evaluate.cli import main as evaluate_main
from timm_lt.training import main
from timm_lt.training.config import ConfigError, parse_args
from timm_lt.training.default_model import choose_model
from timm_lt.training.run import _agree_on_data
from timm_lt.training.second_stage import warn_if_worse
from timm_lt.training.trainer import Trainer

COUNTS = {'cat': 9, 'dog': 6, 'emu': 5}


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(folder, *options):
    status = main([
        '--data-dir', str(folder / 'images'), '--output', str(folder / 'out'), '--experiment', 'run', '-b', '8',
        '--workers', '0', '--epochs', '1', *options])
    AcceleratorState._reset_state(reset_partial_state=True)
    return status


@pytest.mark.parametrize('size, options, name', [
    ((64, 200), [], 'resnet20_cifar'), ((65, 70), [], 'resnet18'), ((300, 200), ['--img-size', '32'], 'resnet20_cifar'),
    ((8, 8), ['--input-size', '3', '128', '128'], 'resnet18')])
def test_the_network_follows_the_size_of_the_images(tmp_path, size, options, name):
    for i in range(3):
        save_image(tmp_path / 'a' / f'{i}.png', size=size)
    chosen, reason = choose_model(parse_args(options).model, create_dataset('folder', tmp_path))
    assert chosen == name and name in reason
    assert ('--pretrained' in reason) == (name == 'resnet18')


def test_a_dry_run_measures_and_leaves_nothing(tmp_path, capsys):
    make_folder(tmp_path / 'images', COUNTS)
    assert train(tmp_path, '--dry-run', '--val-fraction', '0.2') == 0
    out = capsys.readouterr().out
    assert [p.name for p in tmp_path.iterdir()] == ['images']
    for words in ('training part: 13 images of 3 classes, 6 in the largest', 'validation part: 3 images',
                  'test part: 4 images', '--val-fraction 0.2', '1 x (8, 3, 32, 32) to logits (8, 3)', ' ms, ',
                  'an epoch: 1 step,'):
        assert words in out, words


class Epochs:
    """A trainer's progress after some epochs, the best of which is epoch 1, counted from 0."""
    finished = Trainer.finished
    epochs = 10

    def __init__(self, epoch, patience):
        self.patience = patience
        self.progress = type('', (), {'epoch': epoch, 'best': {'epoch': 1}})


@pytest.mark.parametrize('epoch, patience, finished', [
    (4, 3, False), (5, 3, True), (5, 0, False), (10, 0, True), (10, 30, True)])
def test_training_ends_after_epochs_without_a_better_figure(epoch, patience, finished):
    assert Epochs(epoch, patience).finished is finished


def test_a_run_that_stopped_early_says_so_and_stays_finished(tmp_path, caplog, capsys):
    caplog.set_level(logging.INFO)
    make_folder(tmp_path / 'images', COUNTS)
    options = ['--epochs', '5', '--lr', '0', '--warmup-lr', '0', '--val-fraction', '0.2', '--patience', '1']
    assert train(tmp_path, *options) == 0 and 'stopped after epoch 2, because 1 epoch brought' in caplog.text
    metrics = json.loads((tmp_path / 'out/run/metrics.json').read_text())
    assert metrics['epochs'] == 2 and metrics['protocol']['reported_epoch'] == 0
    caplog.clear()
    assert train(tmp_path, *options, '--resume', 'auto') == 0 and 'epoch 3' not in caplog.text
    assert train(tmp_path, *options, '--epochs', '9', '--resume', 'auto') == 2
    assert '--initial-checkpoint' in capsys.readouterr().err
    with pytest.raises(ConfigError, match='validation part'):
        parse_args(['--patience', '1'])


def test_a_run_is_evaluated_again_on_its_own_test_part_alone(tmp_path, capsys):
    for c, name in enumerate(COUNTS):
        for i in range(8):
            save_image(tmp_path / 'images' / name / f'{i}.png', 80 * c + 5 * i, size=(32, 32))
    assert train(tmp_path, '--tta', '10', '--crop-pct', '0.875') == 0
    run = tmp_path / 'out/run'
    parts = json.loads((run / 'parts.json').read_text())
    assert parts['test']['split'] == 'train' and parts['test']['images'] == 24
    assert sorted(parts['train']['indices'] + parts['test']['indices']) == list(range(24))
    of_run = json.loads((run / 'metrics.json').read_text())

    def evaluate(*options):
        return evaluate_main([*options, '--output', str(tmp_path / 'again'), '--bootstrap', '0', '--device', 'cpu'])

    assert evaluate(str(run)) == 0
    again = json.loads((tmp_path / 'again/metrics.json').read_text())
    assert [again[k] for k in ('top1', 'per_class', 'split_rule')] == [
        of_run[k] for k in ('top1', 'per_class', 'split_rule')]
    assert again['ece'] == pytest.approx(of_run['ece'], abs=1e-3)
    assert again['protocol']['test_part'] == of_run['protocol']['test_part']
    capsys.readouterr()
    assert evaluate('--checkpoint', str(run), '--data-dir', str(tmp_path / 'images'), '--split', 'train') == 2
    assert 'trained on' in capsys.readouterr().err
    assert evaluate(str(run), '--split', 'train', '--allow-trained') == 0
    (tmp_path / 'images/cat/0.png').unlink()
    assert evaluate(str(run)) == 2 and 'have changed' in capsys.readouterr().err


def test_a_second_stage_that_is_worse_on_validation_images_is_warned_of(caplog):
    stage = type('', (), {
        'validation_metric': lambda self, model: model, 'accelerator': type('', (), {'is_main_process': True}),
        'options': parse_args([])})()
    warn_if_worse(stage, 50.0, 50.0)
    warn_if_worse(stage, None, None)
    assert caplog.text == ''
    warn_if_worse(stage, 50.0, 40.0)
    assert 'top1 fell from 50.00% to 40.00%' in caplog.text


def test_unreadable_images_are_one_plain_error_and_no_folder(tmp_path, capsys):
    make_folder(tmp_path / 'images', COUNTS)
    Image.new('RGB', (9, 9)).save(tmp_path / 'images/cat/0.png')  # another size, so that images stay in their files
    (tmp_path / 'images/dog/1.png').write_bytes(b'no image')
    assert train(tmp_path, '--quiet') == 2
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'dog/1.png' in err and 'checkpoint' not in err
    assert not (tmp_path / 'out/run').exists()
    assert train(tmp_path, '--quiet', '--bad-images', 'skip', '--no-check-images') == 2
    assert 'leave out --no-check-images' in capsys.readouterr().err


def test_a_loss_of_data_on_one_process_is_an_error_of_each(monkeypatch):
    room = sys.modules[_agree_on_data.__module__]
    accelerator = type('', (), {'num_processes': 2})
    monkeypatch.setattr(room, 'build_data', lambda options: torch.zeros(1))
    monkeypatch.setattr(room, 'gather_object', lambda mine: [*mine, '1 of 5 images cannot be read'])
    with pytest.raises(ConfigError, match='1 of 5 images'):
        _agree_on_data(parse_args([]), accelerator)

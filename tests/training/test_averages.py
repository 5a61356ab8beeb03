"""``--average-last``, chosen on the validation part alone, and ``--tta``: each reported beside the single model."""

import json
import shutil
from types import SimpleNamespace

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from timm_lt.evaluate import report
from timm_lt.evaluate.metrics.views import ViewAverage, viewed_size
from timm_lt.training import main
from timm_lt.training.averaging import LastEpochs
from timm_lt.training.config import ConfigError, parse_args
from timm_lt.training.options._composed import OPTIONS
from timm_lt.training.trainer import Trainer
from timm_lt.training.variants import renew_statistics

TINY = ['--imbalance-ratio', '10', '--images-per-class', '30', '-b', '64', '--workers', '0', '--lr', '0.1']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(output, *options):
    status = main([*TINY, '--output', str(output), '--experiment', 'run', *options])
    AcceleratorState._reset_state(reset_partial_state=True)
    return status


def metrics(output):
    return json.loads((output / 'run/metrics.json').read_text())


@pytest.fixture
def ends(monkeypatch):
    """Weights at the end of each epoch."""
    kept = []
    finish = Trainer._finish_epoch

    def note(self, row):
        kept.append({k: v.clone() for k, v in self.learner.plain_model.state_dict().items()})
        finish(self, row)

    monkeypatch.setattr(Trainer, '_finish_epoch', note)
    return kept


def test_average_is_that_of_the_last_epochs_with_renewed_statistics(tmp_path, ends):
    assert train(tmp_path, '--epochs', '4', '--average-last', '3', '--average-export') == 0
    stored = load_file(tmp_path / 'run/hub/model.safetensors')
    for name in 'conv1.weight', 'fc.bias':
        torch.testing.assert_close(stored[name], sum(end[name] for end in ends[-3:]) / 3)
    assert not torch.allclose(stored['bn1.running_mean'], ends[-1]['bn1.running_mean'], rtol=1e-3)
    found = metrics(tmp_path)
    single, averaged = found['variants']
    assert averaged['reported'] and not single['reported'] and averaged['top1'] == found['top1']
    assert found['protocol']['weights'] == 'average of the last 3 epochs'
    assert found['protocol']['epoch_chosen_by'] == '--average-export'
    page = (tmp_path / 'run/report.html').read_text()
    assert 'average of the last 3 epochs (this page)' in page and 'single model' in page


def test_without_a_validation_part_the_average_is_beside_the_single_model(tmp_path, ends, capsys):
    assert train(tmp_path, '--epochs', '2', '--average-last', '2') == 0
    stored = load_file(tmp_path / 'run/hub/model.safetensors')
    assert torch.equal(stored['conv1.weight'], ends[-1]['conv1.weight'])
    assert [row['reported'] for row in metrics(tmp_path)['variants']] == [True, False]
    assert 'average of the last 2 epochs' in capsys.readouterr().out


def test_a_resumed_run_has_the_same_average(tmp_path, monkeypatch):
    options = '--epochs', '3', '--average-last', '2', '--average-export', '--val-fraction', '0.2'
    assert train(tmp_path / 'whole', *options) == 0
    step, seen = Trainer._run_epoch, []

    def interrupt(self, epoch):
        seen.append(epoch)
        if seen == [0, 1, 2]:
            raise KeyboardInterrupt
        return step(self, epoch)

    monkeypatch.setattr(Trainer, '_run_epoch', interrupt)
    assert train(tmp_path / 'parts', *options) == 130
    assert train(tmp_path / 'parts', *options, '--resume', 'auto') == 0
    whole, parts = (load_file(tmp_path / name / 'run/hub/model.safetensors') for name in ('whole', 'parts'))
    assert all(torch.equal(whole[k], parts[k]) for k in whole)
    shutil.rmtree(tmp_path / 'parts/run/hub')  # a finished run that is resumed has loaded its best epoch before
    assert train(tmp_path / 'parts', *options, '--resume', 'auto') == 0
    assert all(torch.equal(v, whole[k]) for k, v in load_file(tmp_path / 'parts/run/hub/model.safetensors').items())


@pytest.mark.parametrize('better', [True, False])
def test_the_validation_part_chooses(tmp_path, monkeypatch, better):
    figures = iter([50.0, 60.0 if better else 40.0])
    monkeypatch.setattr('timm_lt.training.stage.Stage.validation_metric', lambda self, model: next(figures))
    assert train(tmp_path, '--epochs', '2', '--average-last', '2', '--val-fraction', '0.2') == 0
    found = metrics(tmp_path)
    assert [row['reported'] for row in found['variants']] == [not better, better]
    assert found['protocol']['weights'] == ('average of the last 2 epochs' if better else 'raw')
    assert found['protocol']['epoch_chosen_by'].startswith('validation part')


def test_test_time_views_are_reported_beside_one_view(tmp_path):
    assert train(tmp_path, '--epochs', '1', '--tta', '2') == 0
    found = metrics(tmp_path)
    several, one = found['variants']
    assert (several['label'], one['label']) == ('2 views of an image', 'one view of an image')
    assert several['reported'] and several['ece'] == found['ece'] != one['ece']


def test_crops_are_corners_and_centre_of_the_larger_image():
    class Sums(torch.nn.Module):
        def forward(self, x):
            assert x.shape[-2:] == (2, 2)
            return x.sum((2, 3)) + x[..., 0].sum(2)  # differs under mirroring

    images = torch.arange(16.0).view(1, 1, 4, 4)
    crops = [images[..., i:i + 2, j:j + 2] for i, j in ((0, 0), (0, 2), (2, 0), (2, 2), (1, 1))]
    mean = sum(map(Sums(), crops)) / 5
    torch.testing.assert_close(ViewAverage(Sums(), 5, (2, 2))(images), mean)
    mirrored = sum(Sums()(crop.flip(-1)) for crop in crops) / 5
    torch.testing.assert_close(ViewAverage(Sums(), 10, (2, 2))(images), (mean + mirrored) / 2)
    assert mean != mirrored


def test_crops_need_a_larger_image(tmp_path, capsys):
    assert viewed_size(5, (3, 224, 224), 0.875) == (3, 256, 256)
    assert viewed_size(2, (3, 32, 32), None) == (3, 32, 32)
    assert train(tmp_path, '--tta', '5') == 2
    assert '--tta 5: 5 views are crops of a larger image' in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_renewed_statistics_are_means_over_the_batches_and_frozen_layers_keep_theirs():
    batches = [(torch.randn(8, 2, 3, 3) + i, None) for i in range(3)]
    stage = SimpleNamespace(
        accelerator=Accelerator(cpu=True), pipeline=SimpleNamespace(training=lambda images, epochs: batches),
        data=SimpleNamespace(train=None), options=parse_args([]))
    model = torch.nn.Sequential(torch.nn.BatchNorm2d(2), torch.nn.BatchNorm2d(2), torch.nn.Dropout())
    model[1].eval()
    model[1].train = lambda mode: model[1]  # as fine-tuning freezes it
    random_numbers = torch.get_rng_state()
    renew_statistics(model, stage)
    torch.testing.assert_close(model[0].running_mean, sum(x.mean((0, 2, 3)) for x, _ in batches) / 3)
    assert model[0].momentum == 0.1 and not model[0].training
    assert torch.equal(model[1].running_mean, torch.zeros(2)) and torch.equal(model[1].running_var, torch.ones(2))
    assert torch.equal(random_numbers, torch.get_rng_state())


@pytest.mark.parametrize('metric', OPTIONS['eval_metric'].choices)
def test_every_metric_of_the_choice_is_reported(metric):
    assert isinstance(report(torch.eye(3), torch.arange(3), [200, 50, 5])[metric], float)


def test_nothing_is_stored_before_the_first_averaged_epoch():
    assert LastEpochs(2).state_dict() == {'weights': [], 'epochs': 0}


@pytest.mark.parametrize('options, words', [
    (['--epochs', '2', '--average-last', '3'], 'more epochs than --epochs 2 trains'),
    (['--average-last', '3', '--patience', '2', '--val-fraction', '0.1'], 'give one'),
    (['--average-export'], 'of --average-last K')])
def test_options_that_cannot_hold_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        parse_args(options)

"""The second stage in the training script: every method, resume in either stage, from a given checkpoint."""

import json
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from PIL import Image
from safetensors.torch import load_file
from small_runs import run_script

from timm_lt import create_loss
from timm_lt.training import main, parse_args
from timm_lt.training.data import build_data
from timm_lt.training.head_learner import FrozenModel, HeadLearner
from timm_lt.training.pipeline import InputPipeline
from timm_lt.training.trainer import Trainer
from timm_lt.training.windows import Window
from timm_lt.two_stage import create_second_stage

SMALL = ['--dataset', 'timm_lt/digits', '--batch-size', '32', '--images-per-class', '30', '--imbalance-ratio', '10',
         '--quiet', '--model', 'resnet20_cifar', '--img-size', '16']
run = partial(run_script, SMALL)
TIMES = ('wall_seconds', 'images_per_second')
CHOICE = ('reported_epoch', 'epoch_chosen_by')


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def without_times(value):
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return value


@pytest.fixture(scope='module')
def first_stage(tmp_path_factory):
    """Weights of a first stage that other tests start from, so that none trains it again."""
    output = tmp_path_factory.mktemp('first')
    metrics = run(output, epochs=2)
    return output / 'run' / 'hub' / 'model.safetensors', metrics


@pytest.mark.parametrize('name, options', [
    ('crt', []), ('weight_balancing', []), ('h2t', []),
    ('lws', ['--no-aug']), ('mislas', ['--val-fraction', '0.2']), ('disalign', []), ('ncm', []),
    ('ccsam', ['--stage2-kwargs', 'variant=released']), ('tau_norm', ['--val-fraction', '0.2']),
])
def test_every_method_runs_on_a_given_checkpoint(tmp_path, first_stage, name, options, capsys):
    checkpoint, first = first_stage
    epochs = ['--stage2-epochs', '2'] if name not in ('ncm', 'tau_norm') else []
    metrics = run(tmp_path, '--initial-checkpoint', checkpoint, '--stage2', name, *epochs, *options, epochs=0)
    assert metrics['stage1']['top1'] == first['top1'] or '--val-fraction' in options
    assert metrics['stage2']['method'] == name
    assert metrics['stage2']['top1'] == metrics['top1']
    cached = name in ('ncm', 'tau_norm') or '--no-aug' in options
    assert metrics['stage2']['cached_features'] == cached
    protocol = metrics['protocol']
    assert metrics['stage1']['epoch_chosen_by'] == 'nothing: no epoch was trained'
    assert 'reported_epoch' not in metrics['stage1']
    if epochs:
        assert protocol['reported_stage'] == 2
        assert {k: protocol[k] for k in CHOICE} == {k: metrics['stage2'][k] for k in CHOICE}
        assert metrics['images_per_second'] == pytest.approx(metrics['stage2']['images_per_second'], abs=0.02) != 0
    if name == 'mislas':
        assert protocol['epoch_chosen_by'] == 'validation part, top-1'
        assert 'of the second stage, chosen by validation part' in capsys.readouterr().out
    if name == 'tau_norm':
        assert protocol['tau'] == metrics['stage2']['tau']
        assert protocol['tau_chosen_by'] == 'validation part, balanced_accuracy'
        assert 'no epoch was trained; tau ' in capsys.readouterr().out
    run_folder = tmp_path / 'run'
    model = timm.create_model(f'local-dir:{run_folder / "hub"}', pretrained=True)
    plain = load_file(str(run_folder / 'hub' / 'model.safetensors'))
    start = load_file(str(checkpoint))
    assert plain.keys() == start.keys() == model.state_dict().keys()
    moved = {k for k in plain if not torch.equal(plain[k], start[k])}
    head = {'fc.weight', 'fc.bias'}
    if name in ('mislas', 'h2t'):
        assert moved > head and all('running' in k or 'tracked' in k for k in moved - head)
    elif name == 'disalign':
        assert moved == set()
        counts = json.loads((run_folder / 'class_distribution.json').read_text())['pos_counts']
        method = create_second_stage('disalign', counts)
        method.prepare(model)
        method.load_state_dict(load_file(str(run_folder / 'stage2' / 'head.safetensors')))
        assert json.loads((run_folder / 'hub' / 'metrics.json').read_text())['top1'] == first['top1']
    else:
        assert moved and moved <= head


def test_both_stages_in_one_run_and_their_results(tmp_path):
    metrics = run(tmp_path, '--stage2', 'crt', '--stage2-epochs', '2', '--stage2-lr', '0.05', '--stage2-loss',
                  'balanced_softmax', '--stage2-sampler', 'square_root')
    assert metrics['stage1']['epochs'] == 1 and metrics['epochs'] == 1
    assert metrics['stage2'].items() >= {
        'method': 'crt', 'epochs': 2, 'lr': 0.05, 'loss': 'balanced_softmax', 'sampler': 'square_root'}.items()
    assert {'top1', 'many', 'few', 'per_class', 'ece'} <= metrics['stage1'].keys() & metrics['stage2'].keys()
    rows = (tmp_path / 'run' / 'stage2' / 'summary.csv').read_text().splitlines()
    assert len(rows) == 3
    stages = metrics['stage1'], metrics['stage2']
    assert [stage['reported_epoch'] for stage in stages] == [0, 1] and metrics['protocol']['reported_epoch'] == 1
    assert metrics['wall_seconds'] == pytest.approx(sum(s['wall_seconds'] for s in stages), abs=0.002)
    images = [s['wall_seconds'] * s['images_per_second'] for s in stages]
    assert metrics['wall_seconds'] * metrics['images_per_second'] == pytest.approx(sum(images), rel=0.01)
    assert min(images) > 0


def test_cached_features_are_of_the_images_that_no_aug_trains_on(tmp_path):
    rng = np.random.default_rng(0)
    for part in ('train', 'test'):
        for label in 'ab':
            (tmp_path / part / label).mkdir(parents=True)
            for i in range(3):
                image = Image.fromarray(rng.integers(0, 255, (30, 50, 3), dtype=np.uint8))
                image.save(tmp_path / part / label / f'{i}.png')
    args = parse_args(['--data-dir', str(tmp_path), '--no-aug', '--in-memory', 'off', '-j', '0', '-b', '6'])
    accelerator, data = Accelerator(cpu=True), build_data(args.data)
    config = {'input_size': (3, 32, 32), 'interpolation': 'bilinear', 'mean': (0.5,) * 3, 'std': (0.5,) * 3,
              'crop_pct': 0.8, 'crop_mode': 'center'}
    pipeline = InputPipeline(args.data, args.augmentation, config, accelerator, seed=0)
    (trained, labels), = pipeline.training(data.train, epochs=1)
    (cached, order), = pipeline.unaugmented(data.train)
    (evaluated, _), = pipeline.evaluation(data.train)
    assert order.tolist() == [0, 0, 0, 1, 1, 1]
    for image, label in zip(trained, labels):
        assert any(torch.equal(image, other) for other in cached[order == label])
        assert not any(torch.equal(image, other) for other in evaluated)


@pytest.mark.parametrize('name, weight', [('disalign', None), ('crt', [1, 2, 3, 4]), ('ccsam', [1, 2, 3, 4])])
def test_micro_batches_of_a_step_make_the_mean_of_the_whole(name, weight):
    counts, accelerator = [50, 10, 3, 1], Accelerator(cpu=True)
    criterion = create_loss('balanced_softmax', class_counts=counts, class_weight=weight)
    features, target = torch.randn(12, 64), torch.arange(12) % 4
    target[:5] = 0

    def gradient(sizes):
        torch.manual_seed(0)
        model = timm.create_model('resnet20_cifar', num_classes=4)
        method = create_second_stage(name, counts)
        method.prepare(model)
        with torch.no_grad():
            for p in method.trained_parameters():
                p.add_(torch.randn_like(p), alpha=0.1)
        optimizer = SimpleNamespace(step=lambda: None, zero_grad=lambda: None, step_was_skipped=False)
        learner = HeadLearner(
            accelerator, method, criterion, optimizer, None, frozen=FrozenModel(model, method), cached=True)
        result, _ = learner.step(Window(list(features.split(sizes)), list(target.split(sizes)), []), progress=0.5)
        return [result.loss, *(p.grad for p in method.trained_parameters())]

    torch.testing.assert_close(gradient([5, 7]), gradient([12]))


@pytest.mark.parametrize('name, stop, options', [
    ('mislas', 3, ['--val-fraction', '0.2']), ('ccsam', 1, ['--stage2-cache-features'])])
def test_interrupted_run_resumes_bit_exactly_in_either_stage(tmp_path, monkeypatch, name, stop, options):
    arguments = ['--stage2', name, '--stage2-epochs', '2', *options]
    straight = run(tmp_path, *arguments, name='straight', epochs=2)
    epochs, finish = [], Trainer._finish_epoch

    def interrupted(self, row):
        finish(self, row)
        epochs.append(row)
        if len(epochs) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, '_finish_epoch', interrupted)
    run(tmp_path, *arguments, name='broken', epochs=2, status=130)
    monkeypatch.setattr(Trainer, '_finish_epoch', finish)
    resumed = run(tmp_path, *arguments, '--resume', 'auto', name='broken', epochs=2)
    assert without_times(resumed) == without_times(straight)
    a, b = (load_file(str(tmp_path / n / 'hub' / 'model.safetensors')) for n in ('straight', 'broken'))
    assert all(torch.equal(a[k], b[k]) for k in a)


@pytest.mark.parametrize('options, message', [
    (['--stage2', 'mislass'], 'mislas'),
    (['--stage2', 'crt', '--stage2-kwargs', 'rho=1'], 'rho'),
    (['--stage2', 'tau_norm'], '--val-fraction'),
    (['--stage2', 'ncm', '--stage2-epochs', '3'], 'closed form'),
    (['--stage2', 'mislas', '--stage2-cache-features'], 'cached'),
    (['--epochs', '0'], '--epochs'),
    (['--stage2', 'tau_norm', '--stage2-kwargs', 'tau=1', '--cosine-classifier'], 'cosine'),
    (['--stage2', 'crt', '--stage2-loss', 'las2'], 'las'),
    (['--stage2', 'crt', '--stage2-loss', 'bcl'], 'several views'),
    (['--stage2', 'crt', '--stage2-loss', 'ldam'], '--loss ldam'),
    (['--stage2', 'lws', '--stage2-loss', 'gcl', '--cosine-classifier'], '--loss gcl'),
    (['--stage2-epochs', '3'], '--stage2-epochs'),
    (['--stage2-kwargs', 'tau=1'], '--stage2-kwargs'),
    (['--no-stage2-cache-features'], '--stage2-cache-features'),
])
def test_options_that_do_not_fit_are_refused_before_training(tmp_path, capsys, options, message):
    arguments = [*SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run', *options]
    assert main(arguments) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run' / 'last').exists()

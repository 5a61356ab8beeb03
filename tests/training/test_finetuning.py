"""Fine-tuning in the training script: what is trained and stored, resumes, and features that are computed once."""

import json
from functools import partial

import numpy as np
import pytest
import timm
import torch
from accelerate.state import AcceleratorState
from safetensors.torch import load_file, save_file
from small_runs import run_script

import timm_lt
from timm_lt.data import EpochBatches
from timm_lt.training import build, main
from timm_lt.training import features as feature_module
from timm_lt.training.config import parse_args
from timm_lt.training.console import EpochLines
from timm_lt.training.data import build_data
from timm_lt.training.device import make_accelerator
from timm_lt.training.evaluation import evaluate
from timm_lt.training.features import FeatureModel
from timm_lt.training.outputs import RunFolder
from timm_lt.training.pipeline import InOrder, InputPipeline
from timm_lt.training.trainer import Trainer

SMALL = ['--dataset', 'timm_lt/digits', '--batch-size', '32', '--images-per-class', '20', '--imbalance-ratio', '10',
         '--quiet', '--lr', '0.05']
run = partial(run_script, SMALL)
VIT = ['--model', 'test_vit', '--img-size', '16', '--model-kwargs', 'patch_size=8']
RESNET = ['--model', 'resnet20_cifar', '--img-size', '16']


@pytest.fixture(autouse=True)
def fresh_accelerate_state(monkeypatch):
    for slow in ('write_report', 'write_mistakes'):
        monkeypatch.setattr(RunFolder, slow, lambda *_: None)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope='module')
def pretrained(tmp_path_factory):
    """Weights that the runs start from."""
    files = {}
    for name, kwargs in (('test_vit', {'img_size': 16, 'patch_size': 8}), ('resnet20_cifar', {})):
        torch.manual_seed(3)
        files[name] = tmp_path_factory.mktemp('weights') / f'{name}.safetensors'
        save_file(timm.create_model(name, num_classes=10, **kwargs).state_dict(), files[name])
    return files


def stored(folder):
    return load_file(str(folder / 'hub' / 'model.safetensors'))


@pytest.mark.parametrize('method, options', [
    ('lora', ['--finetune-kwargs', 'rank=2', '--model-ema', '--opt', 'sam', '--opt-kwargs', 'rho=0.1']),
    ('bias', ['--clip-grad', '1', '--grad-accum-steps', '2']), ('norm', ['--no-filter-bias-and-bn']),
    ('blocks:2', ['--layer-decay', '0.7']),
])
def test_a_tuned_vit_is_stored_as_plain_timm_weights_that_give_the_reported_logits(
        tmp_path, pretrained, method, options):
    start = load_file(str(pretrained['test_vit']))
    metrics = run(tmp_path, *VIT, '--initial-checkpoint', pretrained['test_vit'], '--finetune', method, *options)
    assert metrics['finetune'] == method and 0 < metrics['num_tuned_parameters'] < metrics['num_parameters']
    after = stored(tmp_path / 'run')
    assert set(after) == set(start)
    moved = {k for k in after if not torch.equal(after[k], start[k])}
    assert {'head.weight', 'head.bias'} < moved
    allowed = {'lora': ('attn.qkv.weight',), 'bias': ('.bias',), 'norm': ('norm1.', 'norm2.', 'norm.'),
               'blocks:2': ('blocks.4.', 'blocks.5.', 'norm.')}[method]
    assert all(any(part in key for part in allowed) for key in moved - {'head.weight', 'head.bias'})
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "hub"}', pretrained=True)
    assert all(torch.equal(v, after[k]) for k, v in model.state_dict().items())
    assert reproduced(tmp_path / 'run', model)
    if method == 'lora':
        states = torch.load(tmp_path / 'run' / 'last' / 'optimizer.bin', weights_only=False)['state']
        assert sum(s['momentum_buffer'].numel() for s in states.values()) == metrics['num_tuned_parameters']


def evaluated(folder, model, part='test'):
    """Outputs of a model for a part of a run's images."""
    options = parse_args(['--config', str(folder / 'args.yaml')])
    accelerator = make_accelerator(options.run)
    config = timm.data.resolve_data_config({}, model=getattr(model, 'model', model))
    pipeline = InputPipeline(options.data, options.augmentation, config, accelerator, options.run.seed)
    return evaluate(model, pipeline.evaluation(getattr(build_data(options.data), part)), accelerator)


def reproduced(folder, model):
    """Whether a model gives the logits of a run's test images, bit for bit."""
    return np.array_equal(evaluated(folder, model)[0].numpy(), np.load(folder / 'predictions.npz')['logits'])


def test_adaptformer_is_stored_with_its_layers_and_hub_load_restores_it(tmp_path):
    source = timm.create_model('test_vit', num_classes=7, img_size=16, patch_size=8)  # pretrained on other classes
    timm.models.save_for_hf(source, tmp_path / 'source')
    metrics = run(tmp_path, '--model', f'local-dir:{tmp_path / "source"}', '--pretrained', '--finetune', 'adaptformer',
                  '--cosine-classifier', '--cosine-scale', '25', '--head-init', 'class_mean', '--opt', 'sam')
    folder = tmp_path / 'run' / 'hub'
    config = json.loads((folder / 'config.json').read_text())
    assert config['architecture'] == 'adaptformer_network' and config['model_args']['network'] == 'test_vit'
    checkpoint = timm_lt.hub.load(tmp_path / 'run')
    assert checkpoint.model.get_classifier().scale == 25 and checkpoint.recipe['finetune'] == 'adaptformer'
    assert checkpoint.num_parameters == metrics['num_parameters']
    state = checkpoint.model.state_dict()
    assert torch.equal(state['blocks.1.attn.qkv.weight'], source.state_dict()['blocks.1.attn.qkv.weight'])
    assert reproduced(tmp_path / 'run', checkpoint.model)
    assert 'AdaptFormer' in (folder / 'README.md').read_text()


@pytest.mark.parametrize('options', [
    [*VIT, '--finetune', 'lora', '--opt', 'sam', '--model-ema', '--drop-path', '0.2', '--head-init', 'logistic'],
    [*RESNET, '--finetune', 'head', '--feature-copies', '3', '--head-init', 'class_mean'],
])
def test_an_interrupted_run_resumes_bit_exactly(tmp_path, monkeypatch, options):
    run(tmp_path, *options, name='straight', epochs=3)
    finish = Trainer._finish_epoch

    def interrupted(self, row):
        finish(self, row)
        if self.progress.epoch == 1:
            raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, '_finish_epoch', interrupted)
    run(tmp_path, *options, name='broken', epochs=3, status=130)
    monkeypatch.setattr(Trainer, '_finish_epoch', finish)
    run(tmp_path, *options, '--resume', 'auto', name='broken', epochs=3)
    a, b = stored(tmp_path / 'straight'), stored(tmp_path / 'broken')
    assert all(torch.equal(a[k], b[k]) for k in a)


def test_features_are_computed_once_kept_and_taken_by_another_run(tmp_path, pretrained, monkeypatch, capsys):
    calls, compute = [], feature_module.compute_features
    monkeypatch.setattr(feature_module, 'compute_features', lambda *a: calls.append(a[2]) or compute(*a))
    start = ['--initial-checkpoint', pretrained['resnet20_cifar'], *RESNET, '--finetune', 'head']
    first = run(tmp_path, *start, '--feature-copies', '2', name='first', epochs=4)
    assert calls == [2] and first['num_tuned_parameters'] == 650
    after, before = stored(tmp_path / 'first'), load_file(str(pretrained['resnet20_cifar']))
    assert {k for k in after if not torch.equal(after[k], before[k])} == {'fc.weight', 'fc.bias'}
    kept = load_file(str(tmp_path / 'first' / 'features.safetensors'))
    images = len(kept['targets'])
    assert kept['features'].shape == (2, images, 64) and not torch.equal(*kept['features'])
    assert set(load_file(str(tmp_path / 'first' / 'last' / 'model.safetensors'))) == {
        'classifier.weight', 'classifier.bias'}
    file = ['--feature-file', tmp_path / 'first' / 'features.safetensors']
    second = run(tmp_path, *start, '--feature-copies', '2', *file, name='second', epochs=4)
    assert calls == [2] and second['top1'] == first['top1']
    run(tmp_path, *start, *file, name='other', status=2)
    assert 'copies: 2 there, 0 here' in capsys.readouterr().err and not (tmp_path / 'other').exists()
    run(tmp_path, *RESNET, '--finetune', 'head', '--feature-copies', '2', *file, name='other', status=2)
    assert 'weights' in capsys.readouterr().err


def test_features_without_copies_are_those_of_the_evaluation_transform(tmp_path, pretrained, monkeypatch):
    shown = []
    monkeypatch.setattr(EpochLines, 'of', lambda self, row: shown.append(row) or '')
    start = ['--initial-checkpoint', pretrained['resnet20_cifar'], *RESNET]
    run(tmp_path, *start, '--finetune', 'head', '--val-fraction', '0.2', '--opt', 'sam', '--model-ema')
    kept = load_file(str(tmp_path / 'run' / 'features.safetensors'))
    network = timm.create_model(f'local-dir:{tmp_path / "run" / "hub"}', pretrained=True)
    features, targets = evaluated(tmp_path / 'run', FeatureModel(network), 'train')
    assert torch.equal(kept['targets'], targets) and torch.equal(kept['features'][0], features)
    assert reproduced(tmp_path / 'run', network)
    logits, targets = evaluated(tmp_path / 'run', network, 'validation')
    assert shown[-1]['val_top1'] == pytest.approx(100 * float((logits.argmax(1) == targets).float().mean()))


@pytest.mark.parametrize('world', [1, 2, 3])
def test_augmented_copies_of_all_processes_are_in_the_order_of_the_images(world):
    shares = [torch.cat([b.indices for b in EpochBatches(
        InOrder(7, world), 2, world=world, rank=r, drop_last=False)]) for r in range(world)]
    images = torch.cat(shares)  # as they are gathered; evaluate() puts them in this order
    order = torch.cat([torch.arange(r, len(images), world) for r in range(world)]).argsort()
    assert images[order][:7].tolist() == list(range(7))


def test_the_moving_average_shares_the_frozen_weights():
    model = timm_lt.finetune.apply(timm.create_model('test_resnet', num_classes=3), 'bias')
    ema = build.build_ema(parse_args(['--model-ema', '--model-ema-decay', '0.5']).model, model, updates=100)
    start = {name: p.detach().clone() for name, p in model.named_parameters()}
    with torch.no_grad():
        for p in timm_lt.finetune.tuned_parameters(model).values():
            p.add_(1)
    ema.update(model, 1000)
    for name, average in ema.module.named_parameters():
        p = model.get_parameter(name)
        assert (average.data_ptr() == p.data_ptr()) != p.requires_grad
        torch.testing.assert_close(average.detach(), start[name] + 0.5 * p.requires_grad)


@pytest.mark.parametrize('options, message', [
    (['--finetune', 'lorra'], "Did you mean 'lora'"),
    (['--finetune', 'lora', '--finetune-kwargs', 'dim=3'], "no option 'dim'"),
    (['--finetune', 'adaptformer', *RESNET], 'adaptformer cannot adapt'),
    (['--finetune', 'blocks:40', *RESNET], 'has 9 blocks'),
    (['--finetune-kwargs', 'rank=3'], '--finetune METHOD'),
    (['--feature-copies', '3'], '--finetune head'),
    (['--finetune', 'head', '--feature-copies', '3', '--no-aug'], '--no-aug'),
    (['--finetune', 'head', '--mixup', '0.2'], '--feature-copies K'),
    (['--finetune', 'head', '--layer-decay', '0.7'], '--layer-decay'),
    (['--finetune', 'head', '--loss', 'bcl'], 'compares several'),
    (['--finetune', 'lora', '--sync-bn'], '--sync-bn'),
    (['--cosine-scale', '25'], '--cosine-classifier'),
    (['--cosine-scale', '25', '--cosine-classifier', '--loss', 'ldam'], 'scales the cosines itself'),
    (['--head-init', 'nowhere.safetensors'], 'cannot be read as safetensors'),
])
def test_options_that_do_not_fit_are_refused_before_training(tmp_path, capsys, options, message):
    assert main([*SMALL, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run', *options]) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / 'run').exists()

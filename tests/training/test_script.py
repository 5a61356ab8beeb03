"""The training script end to end, each run a child process on tiny networks and images."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from paths import SCRIPT
from PIL import Image
from safetensors import SafetensorError
from safetensors.torch import load_file

from timm_lt.training import main

SMALL = ['--epochs', '2', '--batch-size', '32', '--images-per-class', '40', '--imbalance-ratio', '10', '--quiet']


def start(*args, launcher=(), **environment):
    env = os.environ | {'OMP_NUM_THREADS': '1', 'HF_HUB_OFFLINE': '1', 'ACCELERATE_USE_CPU': 'true'} | environment
    command = [sys.executable, *launcher, str(SCRIPT), *map(str, args)]
    return subprocess.Popen(command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def train(*args, **kwargs):
    process = start(*args, **kwargs)
    out, err = process.communicate(timeout=300)
    return process.returncode, out, err


def train_ok(*args, **kwargs):
    code, out, err = train(*args, **kwargs)
    assert code == 0, err
    return out


def digits(output, *args):
    return ['--dataset', 'timm_lt/digits', *SMALL, '--output', output, '--experiment', 'run', *args]


def metrics_of(output, name='run'):
    return json.loads((Path(output) / name / 'metrics.json').read_text())


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)


TIMES = ('wall_seconds', 'images_per_second')


def same_metrics(a, b):
    return {k: v for k, v in a.items() if k not in TIMES} == {k: v for k, v in b.items() if k not in TIMES}


@pytest.fixture(scope='module')
def finished(tmp_path_factory):
    """One uninterrupted run with everything that has state: EMA, sampler, momentum, mixup, GALA's statistics."""
    output = tmp_path_factory.mktemp('finished')
    return output, train_ok(*digits(output, *STATEFUL))


STATEFUL = [
    '--model-ema', '--model-ema-decay', '0.9', '--sampler', 'class_balanced', '--drop', '0.2', '--loss', 'gala',
    '--drw-epoch', '1', '--grad-accum-steps', '2', '--clip-grad', '5', '--val-fraction', '0.2',
    '--checkpoint-steps', '2', '--warmup-epochs', '1',
]


def test_a_run_prints_its_table_and_writes_its_folder(finished):
    output, out = finished
    run = output / 'run'
    assert 'many' in out and 'few' in out and str(run) in out
    names = ('args.yaml', 'summary.csv', 'metrics.json', 'predictions.npz', 'class_distribution.json')
    assert all((run / name).is_file() for name in names)
    assert all((run / name).is_dir() for name in ('last', 'best', 'hub'))
    rows = list(csv.DictReader((run / 'summary.csv').open()))
    assert [row['epoch'] for row in rows] == ['0', '1']
    metrics = metrics_of(output)
    wanted = 'top1 many medium few per_class ece seed wall_seconds images_per_second num_parameters protocol'
    assert set(wanted.split()) <= set(metrics)
    assert metrics['protocol']['epoch_chosen_by'] == 'validation part, top-1'
    leftovers = [p.name for p in run.iterdir() if p.name.startswith('.') or p.suffix in ('.new', '.old', '.tmp')]
    assert leftovers == []


def test_a_tracker_writes_into_the_run_folder(tmp_path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    train_ok(*digits(tmp_path, '--log-with', 'tensorboard'))
    assert [p.name for p in tmp_path.iterdir()] == ['run']
    events = EventAccumulator(str(tmp_path / 'run' / 'timm_lt')).Reload()
    assert [e.step for e in events.Scalars('train_loss')] == [0, 1]


def test_the_hub_folder_loads_in_timm_and_predicts_the_same(finished):
    output, _ = finished
    from timm_lt.data import create_dataset
    model = timm.create_model(f'local-dir:{output}/run/hub', pretrained=True).eval()
    test = create_dataset('timm_lt/digits', split='test')
    config = timm.data.resolve_model_data_config(model)
    test.transform = timm.data.create_transform(**config)
    with torch.no_grad():
        logits = model(torch.stack([test[i][0] for i in range(8)]))
    stored = np.load(output / 'run' / 'predictions.npz')['logits'][:8]
    np.testing.assert_allclose(logits.numpy(), stored, atol=1e-3)


@pytest.mark.parametrize('moment', ['at once', 'in the first epoch', 'in the second epoch'])
def test_a_killed_run_resumes_to_the_same_weights_and_metrics(finished, tmp_path, moment):
    reference, _ = finished
    process = start(*digits(tmp_path, *STATEFUL))
    run = tmp_path / 'run'
    reached = {
        'at once': lambda: (run / 'args.yaml').exists(),
        'in the first epoch': lambda: (run / 'last' / 'complete.json').exists(),
        'in the second epoch': lambda: (run / 'summary.csv').exists(),
    }[moment]
    while process.poll() is None and not reached():
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (run / 'metrics.json').exists()
    train_ok(*digits(tmp_path, *STATEFUL, '--resume', 'auto'))
    assert same_metrics(metrics_of(tmp_path), metrics_of(reference))
    for name in ('last/model.safetensors', 'hub/model.safetensors'):
        ours, theirs = load_file(run / name), load_file(reference / 'run' / name)
        assert ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)
    assert (run / 'summary.csv').read_text() == (reference / 'run' / 'summary.csv').read_text()


def test_resuming_with_other_options_names_the_keys_that_differ(finished):
    output, _ = finished
    code, _, err = train(*digits(output, *STATEFUL, '--resume', 'auto', '--lr', '0.3', '--epochs', '5'))
    assert code == 2 and 'epochs: 2 there, 5 here' in err and 'lr:' in err and 'Traceback' not in err


def test_two_processes_equal_one_with_the_double_batch(tmp_path):
    # a network whose samples do not depend on one another, so that only the sharing of the batch is compared
    options = [
        '--dataset', 'timm_lt/digits', '--epochs', '2', '--images-per-class', '40', '--imbalance-ratio', '10',
        '--quiet', '--model-kwargs', 'norm_layer=groupnorm', '--lr', '0.05', '--loss', 'gala', '--output', tmp_path,
        '--stage2', 'ncm', '--posthoc', 'rebalance', '--no-channels-last']  # whose kernels round by batch size
    train_ok(*options, '--batch-size', 32, '--experiment', 'one')
    launcher = ['-m', 'torch.distributed.run', '--nproc_per_node', '2', '--master_port', '0', '--standalone']
    train_ok(*options, '--batch-size', 16, '--experiment', 'two', launcher=launcher)
    one, two = metrics_of(tmp_path, 'one'), metrics_of(tmp_path, 'two')
    assert two['protocol']['processes'] == 2 and one['num_test_images'] == two['num_test_images']
    logits = [np.load(tmp_path / name / 'predictions.npz') for name in ('one', 'two')]
    assert np.array_equal(logits[0]['targets'], logits[1]['targets'])
    np.testing.assert_allclose(logits[0]['logits'], logits[1]['logits'], atol=2e-3)
    for a, b in ((one, two), (one['stage1'], two['stage1']), (one['corrected'], two['corrected'])):
        for key in ('top1', 'many', 'medium', 'few'):
            assert a[key] == pytest.approx(b[key], abs=0.5)


@pytest.mark.parametrize('options', [
    ['--loss', 'bcl', '--opt', 'sam', '--opt-kwargs', 'rho=0.05'],
    ['--loss', 'ldam', '--drw-epoch', '1', '--opt', 'imbsam', '--opt-kwargs', 'eta=10'],
    ['--loss', 'proco', '--drw-epoch', '1', '--drw-rule', 'prior_power', '--opt', 'ssesam', '--opt-kwargs', 'eta=10',
     'rho_schedule=step', 'rho_epoch=1', 'rho_end=2'],
    ['--loss', 'ce', '--mixup', '1.0', '--opt', 'ssesam', '--opt-kwargs', 'eta=10', 'stage=0.5',
     '--mixed-precision', 'bf16'],
    ['--loss', 'vs', '--smoothing', '0.1', '--opt', 'lookahead_focalsam', '--torchcompile', 'eager'],
], ids=['bcl', 'ldam', 'proco', 'mixup', 'compiled'])
def test_methods_combine_in_one_run(tmp_path, options):
    assert main(list(map(str, digits(tmp_path, *options, '--images-per-class', '20', '--workers', '0')))) == 0
    assert np.isfinite(metrics_of(tmp_path)['top1'])
    model = timm.create_model(f'local-dir:{tmp_path}/run/hub', pretrained=True)
    assert model.num_classes == 10


def image_folder(root, counts, size=24):
    generator = np.random.default_rng(0)
    for name, count in counts.items():
        (root / name).mkdir(parents=True)
        for i in range(count):
            pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f'{i}.png')
    return root


TINY_TIMM = [
    '--model', 'test_resnet', '--epochs', '1', '--batch-size', '4', '--quiet', '--workers', '0', '--img-size', '32',
]


def test_a_practitioners_single_folder_is_split_and_trained_with_any_timm_model(tmp_path):
    folder = image_folder(tmp_path / 'birds', {'jay': 12, 'owl': 6, 'tit': 3})
    train_ok(folder, *TINY_TIMM, '--aa', 'rand-m5-n1', '--output', tmp_path / 'out', '--experiment', 'run')
    metrics = metrics_of(tmp_path / 'out')
    assert len(metrics['per_class']) == 3 and 'held out' in metrics['protocol']['test_part']
    distribution = json.loads((tmp_path / 'out/run/class_distribution.json').read_text())
    assert distribution['class_names'] == ['jay', 'owl', 'tit'] and sum(distribution['pos_counts']) == 17


def test_a_folder_with_parts_keeps_them(tmp_path):
    image_folder(tmp_path / 'birds/train', {'jay': 8, 'owl': 4})
    image_folder(tmp_path / 'birds/val', {'jay': 2, 'owl': 2})
    train_ok(tmp_path / 'birds', *TINY_TIMM, '--output', tmp_path / 'out', '--experiment', 'run')
    assert metrics_of(tmp_path / 'out')['num_test_images'] == 4


@pytest.mark.parametrize('options, words', [
    (['--loss', 'balanced_sofmax'], "Did you mean 'balanced_softmax'"),
    (['--opt', 'sgdd'], "unknown optimizer 'sgdd'"),
    (['--opt', 'sse_sam'], "unknown optimizer 'sse_sam'. Did you mean 'ssesam'"),
    (['--sampler', 'class_balance'], "Did you mean 'class_balanced'"),
    (['--model', 'resnet33_cifar'], "or 'resnet32_cifar'"),
    (['--sched', 'cosin'], "Did you mean 'cosine'"),
    (['--loss', 'lade', '--mixup', '0.2'], 'does not support soft targets'),
    (['--mixed-precision', 'fp16'], 'fp16 needs a GPU'),
    (['--resume', 'nowhere'], 'no whole checkpoint there'),
    (['--data-dir', 'nowhere', '--dataset', ''], 'nowhere'),
    (['--dataset', 'tourch/cifar10'], "Did you mean 'torch/cifar10'"),
    (['--dataset', 'torch/cifar10', '--data-dir', 'nowhere'], '--dataset-download'),
    (['--pretrained'], 'with --pretrained'),
    (['--initial-checkpoint', 'nowhere.pth'], 'nowhere.pth: there is no such file'),
    (['--initial-checkpoint', str(SCRIPT)], 'with --initial-checkpoint'),
    (['--model', 'local-dir:nowhere'], 'Config file not found'),
    (['--model-kwargs', 'norm_layer=bogus'], "norm_layer 'bogus'"),
    (['--model', 'deit_tiny_distilled_patch16_224', '--loss', 'ldam'], 'cannot take the cosine classifier'),
    (['--input-size', '4', '32', '32'], '1 (grey) or 3 (RGB) channels'),
    (['--mean', '0.5', '0.5'], 'mean must have one value or 3'),
    (['--aa', 'bogus'], '--aa bogus'),
    (['--torchcompile', 'bogus'], "unknown --torchcompile 'bogus'"),
])
def test_mistakes_end_in_one_sentence(tmp_path, capsys, options, words):
    assert main(list(map(str, digits(tmp_path, *options)))) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1, err


def test_an_unreadable_image_is_named_and_skipped_on_demand(tmp_path):
    folder = image_folder(tmp_path / 'birds', {'jay': 10, 'owl': 6})
    (folder / 'jay' / '3.png').write_bytes(b'no image')
    options = [folder, *TINY_TIMM, '--output', tmp_path / 'out', '--experiment', 'run']
    code, _, err = train(*options)
    assert code == 2 and '3.png' in err and '1 of' in err and 'Traceback' not in err
    assert train(*options, '--bad-images', 'skip')[0] == 0


def test_labels_out_of_range_name_their_part(tmp_path, capsys):
    image_folder(tmp_path / 'birds', {'jay': 4})
    (tmp_path / 'train.txt').write_text('jay/0.png 0\njay/1.png 1\n')
    (tmp_path / 'test.txt').write_text('jay/2.png 7\n')
    options = ['--dataset', f'list/{tmp_path}/{{split}}.txt', '--data-dir', tmp_path / 'birds', '--output', tmp_path]
    assert main(list(map(str, options))) == 2
    assert 'the test part: labels must be in [0, 1]' in capsys.readouterr().err


@pytest.mark.parametrize('options, input_size, architecture', [
    # one odd batch, which Mixup cannot pair; grey images; a network of fixed size
    (['--model', 'test_vit', '--loss', 'ce', '--mixup', '0.2', '--input-size', '1', '64', '64'], (1, 64, 64),
     'test_vit'),
    (['--model', 'test_resnet', '--loss', 'ldam', '--img-size', '32'], (3, 32, 32), 'cosine_network'),
], ids=['grey odd batch', 'cosine classifier'])
def test_any_timm_model_trains_and_loads_from_its_hub_folder(tmp_path, options, input_size, architecture):
    image_folder(tmp_path / 'birds/train', {'jay': 6, 'owl': 3})
    image_folder(tmp_path / 'birds/val', {'jay': 2, 'owl': 2})
    common = [tmp_path / 'birds', '--epochs', '1', '--quiet', '-j', '0', '--output', tmp_path, '--experiment', 'run']
    assert main(list(map(str, [*common, *options]))) == 0
    model = timm.create_model(f'local-dir:{tmp_path}/run/hub', pretrained=True)
    assert timm.data.resolve_model_data_config(model)['input_size'] == input_size
    assert json.loads((tmp_path / 'run/hub/config.json').read_text())['architecture'] == architecture
    weights = load_file(tmp_path / 'run/last/model.safetensors')
    assert all(torch.equal(v, weights[k]) for k, v in model.state_dict().items())


def test_an_empty_folder_is_refused(tmp_path, capsys):
    (tmp_path / 'empty').mkdir()
    assert main([str(tmp_path / 'empty'), *TINY_TIMM, '--output', str(tmp_path)]) == 2
    assert 'no images' in capsys.readouterr().err


def test_an_option_that_the_optimizer_lacks_is_named(tmp_path, capsys):
    assert main(list(map(str, digits(tmp_path, '--opt', 'sam', '--opt-kwargs', 'rh=0.1')))) == 2
    assert "'rho'" in capsys.readouterr().err


def test_a_full_disk_anywhere_ends_in_one_sentence(tmp_path, capsys, monkeypatch):
    def full(self, *args):
        raise OSError(28, 'No space left on device')

    monkeypatch.setattr('timm_lt.training.outputs.RunFolder.write_distribution', full)
    assert main(list(map(str, digits(tmp_path)))) == 2
    err = capsys.readouterr().err
    assert 'No space left' in err and '--resume auto' in err and err.count('\n') == 1


def test_sync_bn_on_several_cpu_processes_is_refused(monkeypatch):
    from accelerate import Accelerator

    from timm_lt.training import ConfigError, parse_args
    from timm_lt.training.device import make_accelerator
    monkeypatch.setenv('ACCELERATE_USE_CPU', 'true')
    monkeypatch.setattr('torch.accelerator.is_available', lambda: False)
    monkeypatch.setattr(Accelerator, 'num_processes', property(lambda self: 2))
    with pytest.raises(ConfigError, match='--sync-bn needs GPUs'):
        make_accelerator(parse_args([]).run, sync_bn=True)


def test_a_full_disk_keeps_the_older_checkpoint(tmp_path, capsys, monkeypatch):
    from accelerate import Accelerator
    save_state, calls = Accelerator.save_state, []

    def full(self, folder, **kwargs):
        calls.append(folder)
        if len(calls) > 1:
            Path(folder).mkdir()
            (Path(folder) / 'model.safetensors').write_bytes(b'part')
            raise SafetensorError('I/O error: No space left on device')
        return save_state(self, folder, **kwargs)

    monkeypatch.setattr(Accelerator, 'save_state', full)
    assert main(list(map(str, digits(tmp_path)))) == 2
    err = capsys.readouterr().err
    assert 'No space left' in err and 'is kept' in err and '--resume auto' in err
    monkeypatch.undo()
    assert sorted(p.name for p in (tmp_path / 'run').iterdir() if p.is_dir()) == ['last']
    assert main(list(map(str, digits(tmp_path, '--resume', 'auto')))) == 0
    assert metrics_of(tmp_path)['epochs'] == 2

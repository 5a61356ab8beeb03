"""Options taken over from timm's script do what they do there."""

import json

import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState

from timm_lt import ClassDistribution, create_sampler
from timm_lt.data import BatchAugment, EpochBatches, InMemoryImages
from timm_lt.evaluate import report
from timm_lt.training import ConfigError, build, main, parse_args
from timm_lt.training.device import make_accelerator
from timm_lt.training.evaluation import evaluate
from timm_lt.training.options import EvaluationOptions, RunOptions
from timm_lt.training.pipeline import InputPipeline, RepeatedSampler
from timm_lt.training.results import MetricRules

TINY = ['--dataset', 'timm_lt/digits', '-b', '32', '--images-per-class', '8', '--imbalance-ratio', '2', '--workers',
        '0', '--quiet', '--experiment', 'run', '--model', 'test_resnet', '--img-size', '32']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def model_of(*options, num_classes=3):
    torch.manual_seed(0)
    return build.build_model(parse_args(['--model', 'test_resnet', *options]).model, num_classes)


def test_channels_pooling_and_epsilon_reach_the_network_and_its_saved_folder():
    model, rebuild = model_of('--in-chans', '1', '--gp', 'max')
    assert next(model.parameters()).shape[1] == 1 and model.global_pool.pool_type == 'max'
    assert rebuild['global_pool'] == 'max'
    config = build.data_config(parse_args(['--in-chans', '1']).model, model)
    assert config['input_size'][0] == 1
    model, rebuild = model_of('--model', 'test_efficientnet', '--bn-eps', '0.02')
    assert {m.eps for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.02}
    assert rebuild == {'bn_eps': 0.02}


def test_the_initial_classifier_is_scaled_and_its_bias_set():
    plain = model_of()[0].get_classifier()
    changed = model_of('--head-init-scale', '0.5', '--head-init-bias', '-3')[0].get_classifier()
    torch.testing.assert_close(changed.weight, 0.5 * plain.weight)
    assert torch.equal(changed.bias, torch.full((3,), -3.0))


def test_the_momentum_of_batchnorm_is_that_of_every_layer():
    model, _ = model_of('--bn-momentum', '0.3')
    assert {m.momentum for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)} == {0.3}


@pytest.mark.parametrize('options, words', [
    (['--model', 'test_vit', '--bn-momentum', '0.3'], 'no BatchNorm layer'),
    (['--model', 'resnet20_cifar', '--bn-eps', '0.1'], 'does not take these options'),
    (['--model', 'resnet20_cifar', '--drop-block', '0.1'], 'does not take these options'),
    (['--gp', 'median'], "'test_resnet'"),
])
def test_a_network_that_does_not_take_an_option_says_so(options, words):
    with pytest.raises(ConfigError, match=words):
        model_of(*options)


@pytest.mark.parametrize('options, rates', [
    (['--lr-cycle-limit', '2', '--lr-cycle-decay', '0.1'], (1.0, 0.1)),
    (['--lr-cycle-limit', '2'], (1.0, 0.5)),
])
def test_cycles_of_the_learning_rate(options, rates):
    schedule = parse_args(['--epochs', '4', '--lr', '1', '--warmup-epochs', '0', *options]).schedule
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler, epochs = build.build_scheduler(schedule, optimizer, 5)
    assert epochs == 8
    seen = []
    for epoch in (0, 4):
        scheduler.step(epoch)
        seen.append(optimizer.param_groups[0]['lr'])
    assert seen == pytest.approx(rates)


def test_noise_of_the_learning_rate_follows_the_seed():
    def rates(seed):
        schedule = parse_args(['--epochs', '10', '--lr', '1', '--warmup-epochs', '0', '--lr-noise', '0.2']).schedule
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        scheduler, _ = build.build_scheduler(schedule, optimizer, 5, seed)
        return [scheduler.step(e) or optimizer.param_groups[0]['lr'] for e in range(5)]

    assert rates(1) == rates(1) and rates(1)[3:] != rates(2)[3:] and rates(1)[:2] == rates(2)[:2]


def test_repeated_augmentation_draws_an_image_several_times_in_an_epoch_of_the_same_length():
    targets = torch.arange(12) % 3
    sampler = create_sampler('instance_balanced', targets, seed=3)
    order = RepeatedSampler(sampler, 3).order(2)
    assert torch.equal(order, sampler.order(2)[:4].repeat_interleave(3))
    batches = EpochBatches(RepeatedSampler(sampler, 3), 6)
    batches.set_epoch(2)
    assert torch.cat([b.indices for b in batches]).tolist() == order.tolist()
    options = parse_args(['--aug-repeats', '2', '--dataset', 'torch/cifar10'])
    pipeline = InputPipeline(options.data, options.augmentation, {}, None, 3)
    assert torch.equal(pipeline.sampler(targets, 1).order(0), sampler.order(0)[:6].repeat_interleave(2))


def test_test_time_augmentation_is_the_mean_with_the_mirror_image():
    model = timm.create_model('test_resnet', num_classes=3).eval()
    images = torch.randn(4, 3, 32, 32)
    loader, accelerator = [(images, torch.zeros(4, dtype=torch.int64))], Accelerator(cpu=True)
    distribution = ClassDistribution([4, 2, 1])
    rules = MetricRules.of(EvaluationOptions(tta=2), distribution)
    logits, _ = evaluate(rules.evaluated(model, (3, 32, 32)), loader, accelerator)
    with torch.no_grad():
        torch.testing.assert_close(logits, (model(images) + model(images.flip(-1))) / 2)
    assert MetricRules.of(EvaluationOptions(), distribution).evaluated(model, (3, 32, 32)) is model


def test_the_metric_of_the_validation_part_chooses_the_epoch(tmp_path, monkeypatch):
    """Balanced accuracy falls from epoch to epoch while top-1 rises."""
    calls = []

    def falling(*args, **kwargs):
        calls.append(1)
        return dict(report(*args, **kwargs)) | {'top1': 10.0 * len(calls), 'balanced_accuracy': 50.0 - len(calls)}

    monkeypatch.setattr('timm_lt.training.results.report', falling)
    assert main([*TINY, '--epochs', '2', '--val-fraction', '0.2', '--eval-metric', 'balanced_accuracy', '--tta', '2',
                 '--checkpoint-hist', '1', '--output', str(tmp_path)]) == 0
    run = tmp_path / 'run'
    protocol = json.loads((run / 'metrics.json').read_text())['protocol']
    assert (protocol['reported_epoch'], protocol['epoch_chosen_by']) == (0, 'validation part, balanced_accuracy')
    assert 'mirror' in protocol['test_time_augmentation']
    assert 'val_balanced_accuracy' in (run / 'summary.csv').read_text()
    assert [p.name for p in run.glob('checkpoint-*')] == ['checkpoint-0']
    assert (run / 'checkpoint-0/complete.json').is_file()


def test_the_newest_checkpoints_are_kept_without_a_validation_part(tmp_path):
    assert main([*TINY, '--epochs', '3', '--checkpoint-hist', '2', '--output', str(tmp_path)]) == 0
    assert sorted(p.name for p in (tmp_path / 'run').glob('checkpoint-*')) == ['checkpoint-1', 'checkpoint-2']
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*TINY, '--epochs', '3', '--output', str(tmp_path), '--resume',
                 str(tmp_path / 'run' / 'checkpoint-1')]) == 0


@pytest.mark.parametrize('options, on_cpu, precision', [
    (RunOptions(amp=True), True, 'bf16'), (RunOptions(amp=True), False, 'fp16'),
    (RunOptions(amp=True, amp_dtype='bfloat16'), False, 'bf16'), (RunOptions(), True, None),
    (RunOptions(mixed_precision='fp16'), False, 'fp16')])
def test_amp_is_a_precision_of_accelerate(options, on_cpu, precision):
    assert options.precision(on_cpu) == precision


def test_device_and_precision_of_the_accelerator():
    accelerator = make_accelerator(RunOptions(device='cpu', amp=True))
    assert accelerator.device.type == 'cpu' and accelerator.mixed_precision == 'bf16'


@pytest.mark.parametrize('options, words', [
    (RunOptions(device='tpu'), "--device tpu: accelerate runs on"),
    (RunOptions(device='cpu', amp=True, amp_dtype='float16'), 'fp16 needs a GPU'),
    (RunOptions(log_wandb=True), "tracker 'wandb' is not installed"),
    (RunOptions(log_with='nobody'), 'nobody'),
])
def test_a_device_precision_or_tracker_that_is_not_here_is_refused(options, words, monkeypatch):
    monkeypatch.setattr('accelerate.tracking.get_available_trackers', lambda: [])
    with pytest.raises(ConfigError, match=words):
        make_accelerator(options)


@pytest.mark.parametrize('options, words', [
    (['--tta', '2', '--amp', '--mixed-precision', 'bf16'], 'both name the precision'),
    (['--amp-dtype', 'bfloat16'], '--amp-dtype is of --amp'),
    (['--eval-metric', 'few'], '--eval-metric chooses by the validation part'),
    (['--log-wandb', '--log-with', 'tensorboard'], 'different trackers'),
    (['--wandb-project', 'x'], '--wandb-project is of --log-wandb'),
    (['--torchcompile-mode', 'max-autotune'], '--torchcompile-mode is of --torchcompile'),
])
def test_options_that_lack_their_other_half_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        parse_args(options)


@pytest.mark.parametrize('options, words', [
    (['-b', '1', '--model', 'resnet20_cifar', '--img-size', '4'], 'larger --batch-size'),
    (['--model', 'crossvit_9_240', '--img-size', '64'], "'crossvit_9_240' cannot"),
    (['--train-interpolation', 'random', '--train-crop-mode', 'pad'], 'padded and cropped'),
    (['--stage2', 'ccsam', '--stage2-loss', 'bce'], 'one value per sample'),
])
def test_a_failed_start_is_one_sentence_and_leaves_no_folder(tmp_path, capsys, options, words):
    output = tmp_path / 'output'
    assert main([*TINY, '--epochs', '1', '--output', str(output), *options]) == 2
    err = capsys.readouterr().err
    assert words in err and err.count('\n') == 1
    assert not (output / 'run').exists()


def test_the_mirror_and_the_normalisation_of_a_pipeline_are_those_of_the_evaluation():
    images = InMemoryImages(torch.randint(0, 256, (5, 3, 8, 8), dtype=torch.uint8), torch.arange(5))
    config = {'input_size': (3, 8, 8), 'mean': (0.5,) * 3, 'std': (0.25,) * 3, 'interpolation': 'bilinear',
              'crop_pct': 1.0, 'crop_mode': 'center'}
    options = parse_args(['--no-aug'])
    pipeline = InputPipeline(options.data, options.augmentation, config, Accelerator(cpu=True), 0)
    (evaluated, _), = pipeline.evaluation(images)
    (unaugmented, _), = pipeline.unaugmented(images)
    expected = BatchAugment((0.5,) * 3, (0.25,) * 3).normalize(images.images)
    torch.testing.assert_close(evaluated, expected)
    torch.testing.assert_close(unaugmented, expected)

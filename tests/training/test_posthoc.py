"""The post-hoc correction of a run: what it is fitted on, where its figures stand, that the checkpoint carries it."""

import copy
import json

import numpy as np
import pytest
import timm
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from safetensors.torch import load_file

from timm_lt.evaluate import report
from timm_lt.hub import load
from timm_lt.posthoc import FLOOR, METHODS, PostHoc, rebalance_predictions, tau_normalize
from timm_lt.training import main, parse_args
from timm_lt.training.build import build_model, data_config
from timm_lt.training.config import ConfigError
from timm_lt.training.data import build_data
from timm_lt.training.evaluation import evaluate
from timm_lt.training.options import PosthocOptions
from timm_lt.training.outputs import RunFolder
from timm_lt.training.pipeline import InputPipeline
from timm_lt.training.posthoc import apply_posthoc, check_posthoc, check_posthoc_classifier
from timm_lt.training.results import MetricRules, StageResult
from timm_lt.training.stage import Stage
from timm_lt.training.trainer import Trainer
from timm_lt.two_stage import create_second_stage, list_second_stages

DIGITS = ['--dataset', 'timm_lt/digits', '--images-per-class', '20', '--imbalance-ratio', '10', '--batch-size', '32',
          '--model', 'resnet20_cifar', '--img-size', '8']
SMALL = [*DIGITS, '--val-fraction', '0.2']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def train(tmp_path, *options):
    assert main([*DIGITS, '--epochs', '1', '--output', str(tmp_path), '--experiment', 'run', '--quiet', *options]) == 0
    run = tmp_path / 'run'
    saved = np.load(run / 'predictions.npz')
    metrics = json.loads((run / 'metrics.json').read_text())
    return run, torch.from_numpy(saved['logits']), torch.from_numpy(saved['targets']), metrics


def test_transductive_rebalancing_stands_labelled_beside_the_plain_figures(tmp_path):
    run, logits, targets, metrics = train(tmp_path, '--posthoc', 'rebalance', '--posthoc-kwargs', 'transductive=True')
    counts = metrics['train_images_per_class']
    plain = report(logits, targets, counts)
    corrected = report(rebalance_predictions(logits, floor=FLOOR), targets, counts)
    assert metrics['top1'] == pytest.approx(plain['top1']) and metrics['protocol']['transductive'] == 'no'
    assert metrics['corrected']['top1'] == pytest.approx(corrected['top1'])
    assert metrics['corrected']['transductive'] is True
    assert metrics['corrected']['fitted_on'] == 'the test images themselves'
    card = (run / 'hub' / 'README.md').read_text()
    assert 'rebalance, tau 1, transductive' in card and "transductive: 'yes'" in card
    assert load(run).posthoc.transductive


def test_tau_is_chosen_on_the_validation_part_and_never_on_the_test_images(tmp_path):
    run, logits, targets, metrics = train(tmp_path, '--posthoc', 'rebalance', '--val-fraction', '0.3')
    correction = load(run).posthoc
    assert correction.score is not None and metrics['corrected']['fitted_on'] == 'the validation part'
    assert not metrics['corrected']['transductive']
    result = report(logits, targets, metrics['train_images_per_class'], posthoc=correction)
    assert metrics['corrected']['top1'] == pytest.approx(result['top1'])


def test_without_a_validation_part_tau_is_one_and_the_training_images_give_the_column_sums(tmp_path):
    run, _, _, metrics = train(tmp_path, '--posthoc', 'rebalance')
    correction = load(run).posthoc
    assert correction.tau == 1 and correction.score is None
    assert metrics['corrected']['fitted_on'] == 'the training images'
    sums = torch.tensor(correction.log_column_sums).exp().sum()
    assert float(sums) == pytest.approx(metrics['num_train_images'])  # probabilities of one image sum to one


@pytest.mark.parametrize('options, words', [
    (['--posthoc', 'rebalanc'], "'rebalance'"),
    (['--posthoc', 'rebalance', '--posthoc-kwargs', 'tua=1'], "no option 'tua'"),
    (['--posthoc', 'rebalance', '--posthoc-kwargs', 'transductive=yes'], 'transductive must be one of'),
    (['--posthoc', 'temperature'], '--val-fraction'),
    (['--posthoc', 'rebalance', '--posthoc-kwargs', 'tau=-1'], 'tau must be in'),
    (['--posthoc', 'rebalance', '--posthoc-kwargs', 'floor=2'], 'floor must be in'),
    (['--posthoc', 'logit_adjust', '--posthoc-kwargs', 'metric=top1'], 'balanced_accuracy'),
])
def test_correction_that_cannot_be_made_is_refused_before_training(options, words):
    with pytest.raises(ConfigError, match=words):
        check_posthoc(parse_args(options).posthoc, validation=False)


def finished_network(folder, name):
    """A network with random weights, as the second stage ``name`` leaves it, and the stage that it is of."""
    options, accelerator = parse_args([*SMALL, '--model', 'resnet20_cifar']), Accelerator(cpu=True)
    data = build_data(options.data)
    torch.manual_seed(0)
    model, _ = build_model(options.model, data.distribution.num_classes)
    pipeline = InputPipeline(
        options.data, options.augmentation, data_config(options.model, model), accelerator, seed=0)
    stage = Stage(
        options, accelerator, RunFolder(folder), data, pipeline, MetricRules(data.distribution, 'thirds'))
    method = create_second_stage(name, data.distribution.counts)
    method.prepare(model)
    with torch.no_grad():
        for p in method.head.parameters():
            p.add_(torch.randn_like(p), alpha=0.3)
    method.finish(model)
    return StageResult(model.eval(), *stage.evaluate(model, data.test)), stage


@pytest.mark.parametrize('name', list_second_stages())
def test_every_correction_is_fitted_on_the_classifier_of_every_second_stage(tmp_path, name):
    result, stage = finished_network(tmp_path, name)
    for method in METHODS:
        entry = apply_posthoc(PosthocOptions(method, {}), stage, result, stage.folder)
        file = tmp_path / 'posthoc.json'
        if name == 'disalign' and method == 'tau_normalize':
            assert 'DisAlignHead' in entry['correction_left_out'] and not file.exists()
            continue
        correction = PostHoc.from_dict(json.loads(file.read_text()))
        assert entry['corrected']['top1'] == pytest.approx(
            report(correction(result.logits), result.targets, stage.data.distribution.counts)['top1'])
        assert entry['corrected']['fitted_on'] == 'the validation part'
        if method == 'tau_normalize':
            normalized = tau_normalize(copy.deepcopy(result.model), correction.tau)
            torch.testing.assert_close(
                correction(result.logits), stage.evaluate(normalized, stage.data.test)[0])


def test_network_that_diverged_gets_no_correction_and_the_run_its_results(tmp_path):
    result, stage = finished_network(tmp_path, 'crt')
    with torch.no_grad():
        result.model.fc.bias[0] = torch.nan
    result.logits, result.targets = stage.evaluate(result.model, stage.data.test)
    entry = apply_posthoc(PosthocOptions('temperature', {}), stage, result, stage.folder)
    assert 'not finite' in entry['correction_left_out'] and not list(tmp_path.iterdir())


def second_stage_run(tmp_path, *options, status=0):
    arguments = [*SMALL, '--epochs', '1', '--stage2-epochs', '1', '--output', str(tmp_path), '--experiment', 'run']
    assert main([*arguments, '--quiet', *options]) == status
    AcceleratorState._reset_state(reset_partial_state=True)
    return tmp_path / 'run', json.loads((tmp_path / 'run' / 'metrics.json').read_text()) if status == 0 else {}


def without_times(metrics):
    return {k: v for k, v in metrics.items() if k not in ('wall_seconds', 'images_per_second', 'stage1', 'stage2')}


def test_correction_lies_beside_the_weights_that_it_was_fitted_on_also_after_a_resume(tmp_path, monkeypatch):
    options = ['--stage2', 'disalign', '--posthoc', 'temperature']
    run, metrics = second_stage_run(tmp_path / 'straight', *options)
    of_head = PostHoc.from_dict(json.loads((run / 'stage2' / 'posthoc.json').read_text()))
    of_hub, hub_metrics = load(run).posthoc, load(run).metrics
    assert of_head != of_hub and metrics['corrected']['label'] == of_head.label
    assert hub_metrics['corrected']['label'] == of_hub.label and hub_metrics['top1'] == metrics['stage1']['top1']

    small = parse_args(SMALL)
    data = build_data(small.data)
    config = timm.data.resolve_data_config({}, model=load(run).model)
    for correction, head in ((of_hub, None), (of_head, run / 'stage2' / 'head.safetensors')):
        model = load(run).model
        if head is not None:
            method = create_second_stage('disalign', data.distribution.counts)
            method.prepare(model)
            method.load_state_dict(load_file(str(head)))
        accelerator = Accelerator(cpu=True)
        pipeline = InputPipeline(small.data, small.augmentation, config, accelerator, seed=0)
        logits, targets = evaluate(model, pipeline.evaluation(data.validation), accelerator)

        def loss(t):
            return float(torch.nn.functional.cross_entropy(logits / t, targets))  # noqa: B023

        assert loss(correction.tau) <= min(loss(correction.tau * 1.02), loss(correction.tau / 1.02))

    finish = Trainer._finish_epoch

    def interrupted(self, row):
        finish(self, row)
        raise KeyboardInterrupt

    AcceleratorState._reset_state(reset_partial_state=True)
    monkeypatch.setattr(Trainer, '_finish_epoch', interrupted)
    second_stage_run(tmp_path / 'broken', *options, status=130)
    monkeypatch.setattr(Trainer, '_finish_epoch', finish)
    again, resumed = second_stage_run(tmp_path / 'broken', *options, '--resume', 'auto')
    assert without_times(resumed) == without_times(metrics)
    assert (again / 'stage2' / 'posthoc.json').read_text() == (run / 'stage2' / 'posthoc.json').read_text()


def test_scales_on_a_cosine_classifier_are_normalised_and_the_plain_one_is_left_out(tmp_path):
    run, metrics = second_stage_run(
        tmp_path, '--stage2', 'lws', '--cosine-classifier', '--posthoc', 'tau_normalize', '--posthoc-kwargs', 'tau=1')
    correction = PostHoc.from_dict(json.loads((run / 'stage2' / 'posthoc.json').read_text()))
    scale = load_file(str(run / 'stage2' / 'head.safetensors'))['head.class_scale']
    torch.testing.assert_close(torch.tensor(correction.weight_norms), 16 * scale.abs())
    assert metrics['corrected']['label'] == 'tau_normalize, tau 1, inductive'
    assert load(run).posthoc is None and 'same norm' in load(run).metrics['correction_left_out']
    assert 'same norm' in (run / 'hub' / 'README.md').read_text()


def test_tau_normalisation_that_has_no_meaning_is_refused_before_training():
    args = PosthocOptions('tau_normalize', {})
    model = timm.create_model('resnet20_cifar', num_classes=10, cosine_scale=16.0)
    with pytest.raises(ConfigError, match='all its class vectors have the same norm'):
        check_posthoc_classifier(args, model)
    model = timm.create_model('resnet20_cifar', num_classes=10)
    create_second_stage('disalign', [5] * 10).prepare(model)
    with pytest.raises(ConfigError, match='DisAlignHead'):
        check_posthoc_classifier(args, model)

"""The post-hoc correction of a run: what it is fitted on, where its figures stand, that the checkpoint carries it."""

import json

import numpy as np
import pytest
import torch

from timm_lt.evaluate import report
from timm_lt.hub import load
from timm_lt.posthoc import FLOOR, rebalance_predictions
from timm_lt.training import main
from timm_lt.training.config import ConfigError, parse_args
from timm_lt.training.correction import check_correction


def train(tmp_path, *options):
    assert main(['--epochs', '2', '--output', str(tmp_path), '--experiment', 'run', '--quiet', *options]) == 0
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
    (['--posthoc', 'rebalance', '--posthoc-kwargs', 'transductive=yes'], 'True or False'),
    (['--posthoc', 'temperature'], '--val-fraction'),
    (['--posthoc', 'logit_adjust', '--stage2', 'crt'], 'one of the two'),
])
def test_correction_that_cannot_be_made_is_refused_before_training(options, words):
    with pytest.raises(ConfigError, match=words):
        check_correction(parse_args(options))

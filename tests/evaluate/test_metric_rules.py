"""Figures against plain definitions where inputs are extreme: certain, not finite, tied, absent."""

import json
import math

import numpy as np
import pytest
import torch

from timm_lt.evaluate import choose_threshold, class_prototypes, compare, open_set_report, open_set_scores, report
from timm_lt.evaluate.metrics import calibration_bins, expected_calibration_error, threshold_free
from timm_lt.evaluate.reports import plots
from timm_lt.posthoc import rebalance_predictions

COUNTS = [300, 150, 60, 30, 12, 5]
BAD_ROWS = {
    'nan': [math.nan, 1, 1, 1, 1, 1], 'plus infinity': [1, math.inf, 1, 1, 1, 1], 'minus infinity': [-math.inf] * 6}


def make(num_images=240, seed=0):
    generator = np.random.default_rng(seed)
    targets = np.arange(num_images) % 6
    logits = generator.normal(size=(num_images, 6))
    logits[np.arange(num_images), targets] += 1.5
    return logits, targets


def softmax(logits):
    odds = np.exp(logits - logits.max(1, keepdims=True))
    return odds / odds.sum(1, keepdims=True)


def naive_ece(confidence, right, num_bins=15):
    """Guo et al., Eq. (3), with bins ((m - 1) / M, m / M]."""
    total = 0.0
    for m in range(1, num_bins + 1):
        inside = (confidence > (m - 1) / num_bins) & (confidence <= m / num_bins)
        if inside.any():
            total += inside.sum() * abs(right[inside].mean() - confidence[inside].mean())
    return 100 * total / len(confidence)


@pytest.mark.parametrize('scale', [1.0, 60.0, 1e6])
@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_ece_is_its_definition_also_where_confidences_are_exactly_1(scale, dtype):
    logits, targets = make()
    logits = torch.tensor(logits * scale).to(dtype)
    probabilities = softmax(logits.double().numpy())
    confidence, right = probabilities.max(1), probabilities.argmax(1) == targets
    assert scale == 1 or (confidence == 1).any()
    result = report(logits, torch.tensor(targets), COUNTS)
    assert result['ece'] == pytest.approx(naive_ece(confidence, right), abs=1e-4)
    few = targets >= 4
    assert result['ece_few'] == pytest.approx(naive_ece(confidence[few], right[few]), abs=1e-4)


def test_confidences_on_the_edge_of_a_bin_belong_to_the_bin_below():
    confidence = torch.tensor([1 / 15, 0.2, 1 / 3, 0.4, 0.6, 2 / 3, 0.8, 1.0], dtype=torch.float64)
    images = calibration_bins(confidence, torch.ones(8, dtype=torch.bool))['images']
    assert images.nonzero().flatten().tolist() == [0, 2, 4, 5, 8, 9, 11, 14]
    right = torch.arange(8) % 2 == 0
    assert expected_calibration_error(confidence, right) == pytest.approx(naive_ece(confidence.numpy(), right.numpy()))


@pytest.mark.parametrize('row', BAD_ROWS.values(), ids=BAD_ROWS)
def test_images_that_are_not_finite_follow_one_rule_in_every_figure(row):
    logits, targets = make()
    logits[[0, 1, 2, 3]] = row
    predicted = logits.argmax(1)
    predicted[:4] = -1
    result = report(torch.tensor(logits), torch.tensor(targets), COUNTS, bootstrap=20)
    right = predicted == targets
    assert result['non_finite'] == 4 and result['top1'] == pytest.approx(100 * right.mean())
    assert result['per_class'] == pytest.approx([100 * right[targets == c].mean() for c in range(6)])
    f1 = [200 * (right & (targets == c)).sum() / ((targets == c).sum() + (predicted == c).sum()) for c in range(6)]
    assert result['f1_per_class'] == pytest.approx(f1) and result['macro_f1'] == pytest.approx(np.mean(f1))
    assert result['predicted_images_per_class'] == [(predicted == c).sum() for c in range(6)]
    assert sum(result['split_confusion']['many'].values()) == pytest.approx(100 - 100 * 2 / 80)  # images 0 and 1
    assert result['ece'] is None and result['ece_many'] is None
    assert result['ece_few'] is not None  # none of its images is concerned
    titles = [axes.get_title(loc='right') for axes in plots.reliability(logits, targets, COUNTS).axes]
    assert titles == ['4 not finite', '2 not finite', '2 not finite', f'ECE {result["ece_few"]:.1f}']
    found = compare(torch.tensor(logits), torch.tensor(predicted), targets, COUNTS, bootstrap=20)
    assert found['mcnemar'] == {'first_only': 0, 'second_only': 0, 'p_value': 1.0}
    json.dumps(result, allow_nan=False)


def test_a_score_of_minus_infinity_beside_finite_ones_is_a_probability_of_0():
    logits, targets = make()
    with np.errstate(divide='ignore'):
        scores = np.log(np.where(softmax(logits) < 0.05, 0, softmax(logits)))
    assert np.isinf(scores).any()
    probabilities = softmax(scores)
    result = report(torch.tensor(scores), torch.tensor(targets), COUNTS)
    assert result['non_finite'] == 0
    assert result['ece'] == pytest.approx(naive_ece(probabilities.max(1), probabilities.argmax(1) == targets))


def test_a_correction_is_computed_from_the_finite_images_alone():
    logits, targets = make()
    logits, targets = torch.tensor(logits), torch.tensor(targets)
    broken = logits.clone()
    broken[6] = math.nan
    found = report(broken, targets, COUNTS, posthoc=rebalance_predictions)
    rest = torch.arange(len(targets)) != 6
    expected = report(logits[rest], targets[rest], COUNTS, posthoc=rebalance_predictions)
    assert found['non_finite'] == 1
    assert found['top1'] * len(targets) == pytest.approx(expected['top1'] * (len(targets) - 1))
    everything = report(broken * math.nan, targets, COUNTS, posthoc=rebalance_predictions)
    assert everything['top1'] == 0 and everything['non_finite'] == len(targets)


def test_ties_go_to_the_class_that_argmax_gives_in_every_figure():
    logits, targets = make()
    logits = np.round(logits)  # many ties, also for the first place
    order = np.argsort(-logits, axis=1, kind='stable')  # lower class first among equals
    predicted = order[:, 0]
    assert (np.sort(logits, 1)[:, -1] == np.sort(logits, 1)[:, -2]).sum() > 20
    result = report(torch.tensor(logits), torch.tensor(targets), COUNTS)
    assert result['top1'] == pytest.approx(100 * (predicted == targets).mean())
    assert result['top5'] == pytest.approx(100 * (order[:, :5] == targets[:, None]).any(1).mean())
    assert result['predicted_images_per_class'] == np.bincount(predicted, minlength=6).tolist()
    pairs = compare(torch.tensor(logits), torch.tensor(predicted), targets, COUNTS, bootstrap=10)['mcnemar']
    assert pairs['first_only'] == pairs['second_only'] == 0


def test_precision_and_f1_are_undefined_only_where_there_is_nothing_to_count():
    targets = torch.tensor([0, 0, 1, 1, 2])
    predicted = torch.tensor([0, 1, 1, 1, 0])
    result = report(torch.nn.functional.one_hot(predicted, 6).float(), targets, COUNTS)
    assert result['precision_per_class'] == [50.0, pytest.approx(200 / 3), None, None, None, None]
    assert result['f1_per_class'] == [50.0, 80.0, 0.0, None, None, None]
    assert result['macro_f1'] == pytest.approx(130 / 3)
    assert result['per_class'][:3] == [50.0, 100.0, 0.0] and result['balanced_accuracy'] == 50.0


def test_the_worst_class_says_how_many_share_its_place():
    targets = torch.arange(6)
    predicted = torch.tensor([0, 0, 0, 3, 4, 5])
    result = report(torch.nn.functional.one_hot(predicted, 6).float(), targets, COUNTS)
    assert (result['worst_class'], result['worst_class_index'], result['num_worst_classes']) == (0.0, 1, 2)


def naive_threshold_free(scores, right, known):
    """AUROC by pairs, FPR95 and OSCR by every threshold."""
    pairs = scores[known][:, None] - scores[~known][None]
    auroc = ((pairs > 0) + 0.5 * (pairs == 0)).mean()
    thresholds = sorted(set(scores.tolist()), reverse=True)
    fpr = [(scores[~known] >= t).mean() for t in thresholds]
    tpr = [(scores[known] >= t).mean() for t in thresholds]
    ccr = [(right & (scores >= t))[known].mean() for t in thresholds]
    x, y = np.array([0, *fpr]), np.array([0, *ccr])
    oscr = ((x[1:] - x[:-1]) * (y[1:] + y[:-1]) / 2).sum()
    return {'auroc': 100 * auroc, 'fpr95': 100 * next(f for f, t in zip(fpr, tpr) if t >= 0.95), 'oscr': 100 * oscr}


@pytest.mark.parametrize('levels', [3, 20, 10 ** 6])
@pytest.mark.parametrize('scale', [1, 1e8])
def test_open_set_figures_are_their_definitions_with_ties(levels, scale):
    generator = np.random.default_rng(levels)
    labels = np.where(np.arange(160) < 100, np.arange(160) % 4, -1)
    predictions = np.where(generator.random(160) < 0.7, labels % 4, (labels + 1) % 4)
    scores = np.round((generator.random(160) + 0.4 * (labels >= 0)) * levels) * scale
    expected = naive_threshold_free(scores, predictions == labels, labels >= 0)
    assert threshold_free(*map(torch.tensor, (scores, predictions, labels))) == pytest.approx(expected)


def test_an_image_that_is_not_finite_is_unknown_to_every_open_set_figure():
    logits, targets = make(60)
    labels = torch.tensor(np.where(np.arange(60) < 40, targets, -1))
    logits = torch.tensor(logits)
    logits[3], logits[45] = math.inf, math.nan
    for score in ('softmax', 'energy'):
        scores = open_set_scores(logits, score=score)
        assert scores.isnan().nonzero().flatten().tolist() == [3, 45]
        predictions = logits.argmax(1)
        predictions[3] = labels[3]  # a lucky guess does not count
        found = open_set_report(scores, predictions, labels, threshold=-100.0)
        assert found['counts']['known_rejected'] == 1 and found['counts']['unknown_rejected'] == 1
        right, known = (predictions == labels).numpy(), (labels != -1).numpy()
        right[3] = False
        expected = naive_threshold_free(scores.nan_to_num(-1e9).numpy(), right, known)
        assert {k: found[k] for k in expected} == pytest.approx(expected)


@pytest.mark.parametrize('bad', [math.nan, math.inf, -math.inf])
def test_nothing_is_fitted_to_values_that_are_not_finite(bad):
    with pytest.raises(ValueError, match='1 of 3 validation scores are NaN or infinite'):
        choose_threshold([0.5, bad, 0.7])
    features = torch.ones(4, 3)
    features[2, 1] = bad
    with pytest.raises(ValueError, match='1 of 4 features are NaN or infinite'):
        class_prototypes(features, [0, 0, 1, 1], 2)

import json
import math
import time
from functools import partial

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, f1_score, top_k_accuracy_score
from torchmetrics.functional.classification import multiclass_calibration_error

from timm_lt import ClassDistribution
from timm_lt.evaluate import gather_predictions, merge_seeds, report
from timm_lt.evaluate.metrics import predictions

COUNTS = [500, 101, 100, 50, 20, 19, 5, 1]


def make(num_images=400, num_classes=8, seed=0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(num_classes, (num_images,), generator=generator)
    logits = torch.randn(num_images, num_classes, generator=generator, dtype=torch.float64)
    logits[torch.arange(num_images), targets] += 1.0
    return logits.to(dtype), targets


def naive_per_class(logits, targets):
    result = []
    for c in range(logits.shape[1]):
        own = [int(np.argmax(row)) == c for row, t in zip(logits.numpy(), targets.tolist()) if t == c]
        result.append(100.0 * sum(own) / len(own) if own else None)
    return result


def test_figures_agree_with_scikit_learn():
    logits, targets = make()
    result = report(logits, targets, COUNTS)
    predictions = logits.argmax(1)
    assert result['top1'] == pytest.approx(100 * (predictions == targets).double().mean().item(), abs=1e-12)
    assert result['top5'] == pytest.approx(
        100 * top_k_accuracy_score(targets, logits, k=5, labels=range(8)), abs=1e-10)
    assert result['balanced_accuracy'] == pytest.approx(
        100 * balanced_accuracy_score(targets, predictions), abs=1e-10)
    assert result['macro_f1'] == pytest.approx(100 * f1_score(targets, predictions, average='macro'), abs=1e-10)
    per_class = naive_per_class(logits, targets)
    assert result['per_class'] == pytest.approx(per_class)
    assert result['worst_class'] == min(per_class)
    assert result['worst_class_index'] == per_class.index(min(per_class))
    assert result['harmonic_mean'] == pytest.approx(8 / sum(1 / a for a in per_class))
    assert result['geometric_mean'] == pytest.approx(math.prod(per_class) ** (1 / 8))


@pytest.mark.parametrize('dtype', [torch.float64, torch.float32])
def test_ece_agrees_with_torchmetrics_overall_and_per_split(dtype):
    logits, targets = make(dtype=dtype)
    result = report(logits, targets, COUNTS)
    splits = ClassDistribution(COUNTS).splits()
    everything = {'ece': torch.ones(8, dtype=torch.bool), **{f'ece_{k}': m for k, m in splits.items()}}
    for key, mask in everything.items():
        rows = mask[targets]
        reference = multiclass_calibration_error(logits[rows].softmax(1), targets[rows], 8, n_bins=15)
        assert result[key] == pytest.approx(100 * float(reference), abs=2e-4)


def test_splits_have_their_boundaries_at_100_and_20():
    logits, targets = make()
    per_class = naive_per_class(logits, targets)
    strict = report(logits, targets, COUNTS)
    assert strict['many'] == pytest.approx(np.mean(per_class[:2]))
    assert strict['medium'] == pytest.approx(np.mean(per_class[2:5]))
    assert strict['few'] == pytest.approx(np.mean(per_class[5:]))
    inclusive = report(logits, targets, COUNTS, split_rule='ge100_le20')
    assert inclusive['many'] == pytest.approx(np.mean(per_class[:3]))
    assert inclusive['medium'] == pytest.approx(per_class[3])
    assert inclusive['few'] == pytest.approx(np.mean(per_class[4:]))
    assert (strict['split_rule'], inclusive['split_rule']) == ('gt100_lt20', 'ge100_le20')


def test_empty_split_is_none_not_zero():
    logits, targets = make()
    result = report(logits, targets, [500] * 8)
    assert result['medium'] is None and result['few'] is None and result['ece_few'] is None
    assert result['splits']['few'] == {'classes': 0, 'tested_classes': 0, 'images': 0}
    assert result['many'] == pytest.approx(result['balanced_accuracy'])
    assert json.loads(json.dumps(result, allow_nan=False)) == result


def test_split_without_a_test_image_is_none_and_untested_classes_are_left_out():
    logits, targets = make()
    keep = targets < 5
    result = report(logits[keep], targets[keep], COUNTS)
    assert result['few'] is None
    assert result['splits']['few'] == {'classes': 3, 'tested_classes': 0, 'images': 0}
    assert result['splits']['many'] == {'classes': 2, 'tested_classes': 2, 'images': int((targets < 2).sum())}
    assert result['per_class'][5:] == [None, None, None]
    assert result['balanced_accuracy'] == pytest.approx(np.mean(result['per_class'][:5]))
    predictions = logits[keep].argmax(1)
    assert result['macro_f1'] == pytest.approx(
        100 * f1_score(targets[keep], predictions, average='macro', zero_division=0))


def test_auto_rule_takes_thirds_when_no_class_falls_below_20():
    logits, targets = make(num_classes=6)
    assert report(logits, targets, [500, 400, 90, 70, 25, 20], split_rule='auto')['split_rule'] == 'thirds'
    assert report(logits, targets, [500, 400, 90, 70, 25, 19], split_rule='auto')['split_rule'] == 'gt100_lt20'


def test_one_image_gives_a_report():
    result = report(torch.tensor([[1.0, 2.0]]), torch.tensor([0]), [200, 3], bootstrap=10)
    assert result['top1'] == 0 and result['top5'] == 100
    assert result['many'] == 0 and result['few'] is None
    assert result['confidence']['few'] is None and result['confidence']['top1'] == [0.0, 0.0]


def test_ties_go_to_the_lower_class_not_to_the_true_one():
    result = report(torch.zeros(8, 8), torch.arange(8), COUNTS)
    assert result['top1'] == pytest.approx(100 / 8) and result['top5'] == pytest.approx(500 / 8)


@pytest.mark.parametrize('bad', [math.nan, math.inf])
def test_scores_that_are_not_finite_count_as_wrong(bad):
    logits, targets = make()
    logits[targets == 0] = bad
    result = report(logits, targets, COUNTS)
    assert result['per_class'][0] == 0 and result['non_finite'] == int((targets == 0).sum())
    assert result['ece'] is None
    json.dumps(result, allow_nan=False)


def test_blocks_of_rows_change_nothing(monkeypatch):
    logits, targets = make()
    whole = report(logits, targets, COUNTS)
    monkeypatch.setattr(predictions, 'CHUNK_ELEMENTS', 56)
    assert report(logits, targets, COUNTS) == whole


def test_half_precision_logits_are_scored_in_float32():
    logits, targets = make(dtype=torch.float16)
    assert report(logits, targets, COUNTS) == report(logits.float(), targets, COUNTS)


def test_posthoc_changes_the_logits_and_is_named():
    def shifted(logits, by):
        return logits + by

    shifted.transductive = True
    logits, targets = make()
    by = torch.linspace(0, 3, 8, dtype=torch.float64)
    result = report(logits, targets, COUNTS, posthoc=partial(shifted, by=by))
    assert result['top1'] == report(logits + by, targets, COUNTS)['top1']
    assert result['posthoc'] == 'shifted' and result['transductive'] is True
    assert report(logits, targets, COUNTS)['transductive'] is False


def test_split_confusion_rows_are_percent_of_the_images_of_a_split():
    logits, targets = make()
    result = report(logits, targets, COUNTS)
    splits = ClassDistribution(COUNTS).splits()
    predictions = logits.argmax(1)
    for true, row in result['split_confusion'].items():
        images = splits[true][targets]
        for predicted, share in row.items():
            assert share == pytest.approx(100 * splits[predicted][predictions[images]].double().mean().item())


def test_bootstrap_agrees_with_resampling_the_images_themselves():
    logits, targets = make()
    found = report(logits, targets, COUNTS, bootstrap=4000)['confidence']
    generator = np.random.default_rng(1)
    right = (logits.argmax(1) == targets).numpy()
    few = (targets >= 5).numpy()
    top1, shots = [], []
    for _ in range(1500):
        rows = generator.integers(len(right), size=len(right))
        top1.append(100 * right[rows].mean())
        classes = [right[rows][(targets.numpy()[rows] == c)] for c in range(5, 8)]
        shots.append(np.mean([100 * c.mean() for c in classes if len(c)]))
    assert few.any()
    assert found['top1'] == pytest.approx(np.percentile(top1, [2.5, 97.5]), abs=0.8)
    assert found['few'] == pytest.approx(np.percentile(shots, [2.5, 97.5]), abs=1.5)
    assert found == report(logits, targets, COUNTS, bootstrap=4000)['confidence']
    assert found != report(logits, targets, COUNTS, bootstrap=4000, seed=1)['confidence']


def test_bootstrap_interval_covers_the_true_accuracy_at_its_level():
    truth = 70.0
    covered = 0
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(2, (150,), generator=generator)
        right = torch.rand(150, generator=generator) < truth / 100
        logits = torch.nn.functional.one_hot(torch.where(right, targets, 1 - targets), 2).float()
        low, high = report(logits, targets, [200, 5], bootstrap=300, seed=seed)['confidence']['top1']
        covered += low <= truth <= high
    assert 180 <= covered <= 198  # binomial(200, 0.95) within some four deviations below


@pytest.mark.parametrize(('logits', 'targets', 'counts', 'message'), [
    (torch.zeros(3, 8), torch.tensor([0, 1, 8]), COUNTS, 'targets must be in'),
    (torch.zeros(3, 8), torch.tensor([0, -1, 2]), COUNTS, 'targets must be in'),
    (torch.zeros(3, 8), torch.tensor([0, 1]), COUNTS, 'targets must be whole numbers of shape'),
    (torch.zeros(3, 8), torch.tensor([0, 1, 2]), COUNTS[:7], 'class_counts has 7 entries'),
    (torch.zeros(0, 8), torch.zeros(0, dtype=torch.int64), COUNTS, 'no test image'),
    (torch.zeros(3), torch.tensor([0, 1, 2]), COUNTS, 'logits must be floats of shape'),
])
def test_wrong_input_is_named(logits, targets, counts, message):
    with pytest.raises(ValueError, match=message):
        report(logits, targets, counts)


def test_fifty_thousand_by_thousand_logits_take_seconds_and_little_memory():
    import resource
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(50_000, 1000, generator=generator)
    targets = torch.randint(1000, (50_000,), generator=generator)
    report(logits[:100], targets[:100], [30] * 1000)  # imports and thread pools
    size = logits.numel() * 4
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    start = time.perf_counter()
    report(logits, targets, [30] * 1000, bootstrap=200)
    assert time.perf_counter() - start < 30
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 - before < size


def test_seeds_are_merged_to_mean_and_deviation():
    reports = []
    for seed in range(3):
        logits, targets = make(seed=seed)
        reports.append({**report(logits, targets, COUNTS), 'seed': seed})
    merged = merge_seeds(reports)
    top1 = [r['top1'] for r in reports]
    assert merged['num_seeds'] == 3 and merged['seeds'] == [0, 1, 2]
    assert merged['mean']['top1'] == pytest.approx(np.mean(top1))
    assert merged['std']['top1'] == pytest.approx(np.std(top1, ddof=1))
    assert merged['per_class_mean'][2] == pytest.approx(np.mean([r['per_class'][2] for r in reports]))
    assert merge_seeds(reports[:1])['std']['top1'] is None
    other = report(*make(), [500] * 8, split_rule='thirds')
    with pytest.raises(ValueError, match='share split_rule'):
        merge_seeds([*reports, other])


@pytest.mark.parametrize('change, message', [
    ({'num_images': 5}, 'share num_images'), ({'transductive': True}, 'share transductive'),
    ({'posthoc': 'rebalance, tau 1, inductive'}, 'share posthoc'), ({'seed': 0}, 'seed 0 appears 2 times')])
def test_reports_that_are_no_repeats_are_not_merged(change, message):
    first = {**report(*make(), COUNTS), 'seed': 0}
    with pytest.raises(ValueError, match=message):
        merge_seeds([first, {**first, 'seed': 1, **change}])


def test_seeds_whose_correction_chose_its_own_strength_are_merged():
    first = {**report(*make(), COUNTS), 'seed': 0, 'posthoc': 'logit_adjust, tau 1, inductive'}
    second = {**first, 'seed': 1, 'posthoc': 'logit_adjust, tau 1.2, inductive'}
    assert merge_seeds(r for r in (first, second))['num_seeds'] == 2


def test_merged_split_that_is_absent_stays_absent():
    logits, targets = make()
    assert merge_seeds([report(logits, targets, [500] * 8)] * 2)['mean']['few'] is None


class FakeAccelerator:
    """Two processes in one: ``gather`` puts the tensors of both one after the other, as accelerate does."""

    num_processes = 2

    def __init__(self, other):
        self.other, self.calls = iter(other), 0

    def gather(self, tensor):
        self.calls += 1
        other = next(self.other)
        if other.shape != tensor.shape:  # the other process pads to the longest itself
            padded = torch.zeros_like(tensor)
            padded[:len(other)] = other
            other = padded
        return torch.cat([tensor, other])


def test_predictions_of_processes_with_unequal_numbers_are_gathered_once():
    logits, targets = make(10)
    accelerator = FakeAccelerator([torch.tensor([4]), logits[6:], targets[6:]])
    batches = [logits[:4], logits[4:6]], [targets[:4], targets[4:6]]
    found_logits, found_targets = gather_predictions(*batches, accelerator)
    assert torch.equal(found_logits, logits) and torch.equal(found_targets, targets)
    assert accelerator.calls == 3


def test_padding_of_the_sampler_is_dropped():
    logits, targets = make(10)
    found_logits, found_targets = gather_predictions([logits], [targets], num_valid=7)
    assert torch.equal(found_logits, logits[:7]) and torch.equal(found_targets, targets[:7])

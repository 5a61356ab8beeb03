import numpy as np
import pytest
import torch
from scipy.stats import binom

from timm_lt.evaluate import compare, mcnemar
from timm_lt.evaluate.metrics.significance import mark

COUNTS = [500, 300, 60, 40, 10, 5]


def make(num_images=600, better=0.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    targets = torch.randint(6, (num_images,), generator=generator)
    first = torch.where(torch.rand(num_images, generator=generator) < 0.5, targets, (targets + 1) % 6)
    gain = (torch.rand(num_images, generator=generator) < better) & (targets >= 4)
    second = torch.where(gain, targets, first)
    return first, second, targets


def test_mcnemar_is_the_exact_binomial_test():
    first = torch.tensor([1] * 10 + [0] * 3 + [1] * 7).bool()
    second = torch.tensor([0] * 10 + [1] * 3 + [1] * 7).bool()
    found = mcnemar(first, second)
    assert (found['first_only'], found['second_only']) == (10, 3)
    assert found['p_value'] == pytest.approx(2 * binom.cdf(3, 13, 0.5))
    assert mcnemar(first, first)['p_value'] == 1.0
    with pytest.raises(ValueError, match='same images'):
        mcnemar(first, second[:5])


def test_differences_are_those_of_the_figures():
    first, second, targets = make(better=0.6)
    found = compare(first, second, targets, COUNTS, bootstrap=200)
    right = [(run == targets).double() for run in (first, second)]
    assert found['top1']['difference'] == pytest.approx(100 * float((right[1] - right[0]).mean()))
    for name, classes in (('balanced_accuracy', range(6)), ('many', (0, 1)), ('medium', (2, 3)), ('few', (4, 5))):
        expected = np.mean([100 * float((right[1] - right[0])[targets == c].mean()) for c in classes])
        assert found[name]['difference'] == pytest.approx(expected, abs=1e-10)


def test_only_the_split_that_gained_is_significant():
    first, second, targets = make(better=0.6)
    found = compare(first, second, targets, COUNTS, bootstrap=2000)
    assert found['few']['p_value'] < 0.01 and found['few']['interval'][0] > 0
    assert found['many']['p_value'] == 1.0 and found['many']['difference'] == 0
    assert found['mcnemar']['p_value'] < 0.001
    turned = compare(second, first, targets, COUNTS, bootstrap=2000)
    assert turned['few']['difference'] == pytest.approx(-found['few']['difference'])


def test_logits_and_predictions_give_the_same():
    first, second, targets = make(better=0.3)
    logits = [torch.nn.functional.one_hot(run, 6).float() for run in (first, second)]
    assert compare(*logits, targets, COUNTS, bootstrap=50) == compare(first, second, targets, COUNTS, bootstrap=50)


def test_absent_split_is_none():
    first, second, targets = make()
    assert compare(first, second, targets, [500] * 6, bootstrap=50)['few'] is None


def test_false_alarms_of_two_equally_good_runs_keep_to_the_level():
    alarms = {'mcnemar': 0, 'few': 0}
    for seed in range(100):
        generator = torch.Generator().manual_seed(seed)
        targets = torch.randint(6, (600,), generator=generator)
        runs = [torch.where(torch.rand(600, generator=generator) < 0.5, targets, -1) for _ in range(2)]
        found = compare(*runs, targets, COUNTS, bootstrap=200, seed=seed)
        for name in alarms:
            alarms[name] += found[name]['p_value'] < 0.05
    assert all(n <= 13 for n in alarms.values())  # binomial(100, 0.05): more than 13 has probability 0.0005


def test_marks_follow_the_usual_levels():
    assert [mark(p) for p in (None, 0.2, 0.04, 0.009, 0.0001)] == ['', '', '*', '**', '***']


def test_targets_and_predictions_are_read_as_labels():
    first, second, targets = make(better=0.3)
    columns = [column.numpy().astype(np.uint16) for column in (first, second, targets)]
    assert compare(*columns, COUNTS, bootstrap=50) == compare(first, second, targets, COUNTS, bootstrap=50)
    with pytest.raises(ValueError, match='whole numbers'):
        compare(first, second, targets.double(), COUNTS, bootstrap=50)
    with pytest.raises(ValueError, match=r'targets must be in \[0, 5\]'):
        compare(first, second, targets + 1, COUNTS, bootstrap=50)

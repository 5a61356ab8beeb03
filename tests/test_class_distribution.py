import json

import numpy as np
import pytest
import torch
from timm.loss import load_class_stats

from timm_lt import ClassDistribution


def names_of(masks, counts):
    return {name: [n for n, m in zip(counts, mask.tolist()) if m] for name, mask in masks.items()}


@pytest.mark.parametrize('targets', [
    [0, 0, 0, 1, 1, 2], (t for t in (2, 0, 1, 0, 1, 0)), np.array([0, 1, 0, 2, 0, 1], dtype=np.uint8),
    torch.tensor([1, 0, 0, 1, 0, 2], dtype=torch.int32),
])
def test_labels_of_any_form_are_counted(targets):
    distribution = ClassDistribution.from_targets(targets)
    assert distribution.counts.tolist() == [3, 2, 1] and distribution.counts.dtype == torch.int64
    assert distribution.num_classes == 3 and distribution.num_samples == 6 and distribution.imbalance_ratio == 3.0
    torch.testing.assert_close(distribution.priors, torch.tensor([3, 2, 1], dtype=torch.float64) / 6)


def test_classes_without_images_are_counted_named_and_left_out_of_the_ratio():
    distribution = ClassDistribution.from_targets([0, 0, 2], 4, class_names='abcd')
    assert distribution.counts.tolist() == [2, 0, 1, 0] and distribution.empty_classes == [1, 3]
    assert distribution.imbalance_ratio == 2.0
    with pytest.raises(ValueError, match=r"2 of 4 classes have no training image: \['b', 'd'\]"):
        distribution.require_images()
    ClassDistribution([1, 1]).require_images()


@pytest.mark.parametrize('targets,kwargs,match', [
    ([], {}, 'not empty'),
    ([0, 3], dict(num_classes=3), r'labels must be in \[0, 2\] for 3 classes, got labels from 0 to 3'),
    ([0, -1], {}, 'labels from -1'),
    ([0.0, 1.0], {}, 'whole numbers'),
    ([[0, 1]], {}, 'one-dimensional'),
    ([True, False], {}, 'whole numbers'),
    (['cat', 'dog'], {}, 'whole numbers'),
])
def test_bad_labels_are_refused(targets, kwargs, match):
    with pytest.raises(ValueError, match=match):
        ClassDistribution.from_targets(targets, **kwargs)


@pytest.mark.parametrize('counts,error,match', [
    (None, TypeError, 'class_counts is missing'), ([], ValueError, 'not empty'), ([1, -1], ValueError, 'at least 0'),
    ([0.5, 1], ValueError, 'whole numbers'), ([0, 0], ValueError, 'no class has an image'),
])
def test_bad_counts_are_refused(counts, error, match):
    with pytest.raises(error, match=match):
        ClassDistribution(counts)


def test_names_must_be_as_many_as_classes():
    with pytest.raises(ValueError, match='there are 2 classes, but 1 class_names'):
        ClassDistribution([1, 2], ['a'])


COUNTS = [500, 101, 100, 99, 21, 20, 19, 1]


@pytest.mark.parametrize('rule,expected', [
    ('gt100_lt20', dict(many=[500, 101], medium=[100, 99, 21, 20], few=[19, 1])),
    ('ge100_le20', dict(many=[500, 101, 100], medium=[99, 21], few=[20, 19, 1])),
    ('100,20', dict(many=[500, 101], medium=[100, 99, 21, 20], few=[19, 1])),
    ('400,100', dict(many=[500], medium=[101, 100], few=[99, 21, 20, 19, 1])),
    ('thirds', dict(many=[500, 101, 100], medium=[99, 21], few=[20, 19, 1])),
])
def test_split_rules_draw_the_line_where_they_say(rule, expected):
    assert names_of(ClassDistribution(COUNTS).splits(rule), COUNTS) == expected


def test_default_split_is_that_of_most_papers():
    distribution = ClassDistribution(COUNTS)
    for name, mask in distribution.splits().items():
        assert torch.equal(mask, distribution.splits('gt100_lt20')[name])


@pytest.mark.parametrize('rule', ['most', '10', '10,20,30', '20,100', ''])
def test_unknown_split_rule_is_refused(rule):
    with pytest.raises(ValueError, match='split rule'):
        ClassDistribution(COUNTS).splits(rule)


def test_every_class_is_in_exactly_one_split():
    distribution = ClassDistribution(list(range(1, 201)))
    for rule in ('gt100_lt20', 'ge100_le20', 'thirds', '1000,200', '19,20'):
        assert torch.stack(list(distribution.splits(rule).values())).sum(0).eq(1).all()


def test_head_and_tail_part_the_classes():
    distribution = ClassDistribution(COUNTS)
    assert torch.equal(distribution.head(20), ~distribution.tail(20)) and distribution.head(20).any()


def test_tail_is_below_eta():
    assert [n for n, t in zip(COUNTS, ClassDistribution(COUNTS).tail(20).tolist()) if t] == [19, 1]
    with pytest.raises(ValueError, match='eta'):
        ClassDistribution(COUNTS).tail(-1)


def test_size_groups_are_even_and_sorted_by_size():
    distribution = ClassDistribution([5, 50, 500, 1, 10])
    assert distribution.size_groups(2).tolist() == [1, 0, 0, 1, 0]
    assert distribution.size_groups(5).tolist() == [3, 1, 0, 4, 2]
    with pytest.raises(ValueError, match='num_groups'):
        distribution.size_groups(6)


@pytest.mark.parametrize('class_names', [None, ['a', 'b', 'ü']])
def test_json_round_trips_and_is_read_by_timm(tmp_path, class_names):
    distribution = ClassDistribution([30, 2, 0], class_names)
    distribution.to_json(tmp_path / 'stats.json')
    counts, num_samples = load_class_stats(str(tmp_path / 'stats.json'))
    assert counts.tolist() == [30, 2, 0] and num_samples == 32
    again = ClassDistribution.from_json(tmp_path / 'stats.json')
    assert again == distribution and again.class_names == class_names
    assert [p.name for p in tmp_path.iterdir()] == ['stats.json']


def test_json_of_timm_and_plain_lists_are_read(tmp_path):
    stats = {'pos_counts': [3.0, 1.0], 'num_samples': 4, 'class_weight': [1, 1]}
    (tmp_path / 'timm.json').write_text(json.dumps(stats))
    (tmp_path / 'list.json').write_text('[3, 1]')
    assert ClassDistribution.from_json(tmp_path / 'timm.json') == ClassDistribution.from_json(tmp_path / 'list.json')


@pytest.mark.parametrize('text,match', [
    ('{"num_samples": 3}', "needs a 'pos_counts' list"), ('7', "needs a 'pos_counts' list"), ('{', 'is not JSON'),
    ('{"pos_counts": [3, 2], "num_samples": 4}', 'add up to 5, but num_samples is 4'),
    ('{"pos_counts": [3, "x"]}', 'whole numbers'), ('{"pos_counts": null}', 'class_counts is missing'),
    ('[0, 0]', 'no class has an image'),
])
def test_bad_json_is_refused_with_its_path(tmp_path, text, match):
    (tmp_path / 'stats.json').write_text(text)
    with pytest.raises(ValueError, match=f'stats.json.*{match}'):
        ClassDistribution.from_json(tmp_path / 'stats.json')


def test_distribution_is_printed_and_compared():
    assert repr(ClassDistribution([100, 1])) == 'ClassDistribution(2 classes, 101 images, imbalance ratio 100)'
    assert ClassDistribution([2, 1]) == ClassDistribution(torch.tensor([2, 1])) != ClassDistribution([1, 2])

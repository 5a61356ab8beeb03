"""Paired comparison of two runs on the same test images.

Papers: Q. McNemar, "Note on the sampling error of the difference between correlated proportions", Psychometrika 1947
(exact binomial form); B. Efron, "Bootstrap methods: another look at the jackknife", 1979 (paired over images).
Source: written from the definitions.
Differs from the paper: no.

The comparison shows that two *trained networks* differ on this test. Two *methods* need several seeds.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..._labels import check_label_range, read_labels
from ..._validate import check_class_counts, check_range
from ...class_distribution import ClassDistribution
from .closed_set import resolve_split_rule
from .intervals import class_means, draw_cells, interval
from .predictions import check_predictions, predict


def compare(
        first: Any,
        second: Any,
        targets: Any,
        class_counts: Any,
        *,
        split_rule: str = 'gt100_lt20',
        bootstrap: int = 2000,
        seed: int = 0,
) -> dict[str, Any]:
    """Compare two runs image by image.

    Args:
        first: Logits (N, C) or predicted classes (N,) of the first run.
        second: The same of the second run, for the same images in the same order.
        targets: True classes, (N,).
        class_counts: Training images per class, (C,), or a :class:`ClassDistribution`.
        split_rule: As in :func:`timm_lt.evaluate.report`.
        bootstrap: Resamples of the images.
        seed: Of the bootstrap.

    Returns:
        A dictionary with

        - ``mcnemar``: ``first_only`` and ``second_only`` (images that only one of them has right) and ``p_value``;
        - ``top1``, ``balanced_accuracy``, ``many``, ``medium``, ``few``: ``difference`` (second minus first, in
          points), ``interval`` (95%) and ``p_value`` of the paired bootstrap (two-sided). An absent split has None.
    """
    distribution = ClassDistribution(check_class_counts(class_counts, min_count=0, who='compare'))
    num_classes = distribution.num_classes
    targets = read_labels(targets)
    right = [_right(run, targets, num_classes) for run in (first, second)]
    check_label_range(targets, num_classes, 'targets')
    check_range('bootstrap', bootstrap, 1)
    split_rule = resolve_split_rule(distribution, split_rule)
    cells = torch.bincount(
        4 * targets + 2 * right[0].long() + right[1].long(), minlength=4 * num_classes)
    measured = cells.numpy()[None].reshape(1, num_classes, 4)
    drawn = draw_cells(cells, bootstrap, seed).reshape(bootstrap, num_classes, 4)
    result: dict[str, Any] = {
        'mcnemar': mcnemar(*right), 'split_rule': split_rule, 'num_images': len(targets),
        'resamples': bootstrap, 'seed': seed,
    }

    def difference_of_top1(counts: Any, _: Any) -> Any:
        return 100.0 * (counts[..., 1] - counts[..., 2]).sum(1) / len(targets)

    masks = {'balanced_accuracy': torch.ones(num_classes, dtype=torch.bool), **distribution.splits(split_rule)}
    for name in ('top1', *masks):
        difference = difference_of_top1 if name == 'top1' else _difference_of_means
        mask = masks.get(name, masks['balanced_accuracy'])
        found = float(difference(measured, mask.numpy())[0])
        if found != found:  # no test image in this split
            result[name] = None
            continue
        values = difference(drawn, mask.numpy())
        result[name] = {'difference': found, 'interval': interval(values), 'p_value': _p_value(values)}
    return result


def _difference_of_means(counts: Any, mask: Any) -> Any:
    counts = counts[:, mask]
    images = counts.sum(-1)
    return class_means(counts[..., 1] + counts[..., 3], images) - class_means(counts[..., 2:].sum(-1), images)


def mcnemar(first_right: Any, second_right: Any) -> dict[str, Any]:
    """Exact two-sided McNemar test.

    Args:
        first_right: Whether the first run has each image right, (N,), bool.
        second_right: The same of the second run.

    Returns:
        ``first_only``, ``second_only`` (numbers of images) and ``p_value``, 1 if the runs never disagree.
    """
    from scipy.stats import binomtest
    first_right, second_right = torch.as_tensor(first_right).bool(), torch.as_tensor(second_right).bool()
    if first_right.shape != second_right.shape:
        raise ValueError(f'two runs must cover the same images, got {len(first_right)} and {len(second_right)}')
    first_only = int((first_right & ~second_right).sum())
    second_only = int((second_right & ~first_right).sum())
    disagree = first_only + second_only
    p_value = float(binomtest(first_only, disagree, 0.5).pvalue) if disagree else 1.0
    return {'first_only': first_only, 'second_only': second_only, 'p_value': p_value}


def mark(p_value: float | None) -> str:
    """Stars of a p-value: three below 0.001, two below 0.01, one below 0.05."""
    if p_value is None:
        return ''
    return '*' * sum(p_value < level for level in (0.05, 0.01, 0.001))


def _p_value(differences: Any) -> float:
    """Two-sided p-value of resampled differences."""
    differences = differences[differences == differences]  # a resample may miss a split
    fewer = min(int((differences <= 0).sum()), int((differences >= 0).sum()))
    # one more than counted: a p-value of 0 cannot follow from a finite number of resamples
    return min(1.0, 2 * (fewer + 1) / (len(differences) + 1))


def _right(run: Any, targets: Tensor, num_classes: int) -> Tensor:
    run = run if isinstance(run, Tensor) else np.asarray(run)
    if run.ndim == 2:
        if run.shape[1] != num_classes:
            raise ValueError(f'logits have {run.shape[1]} columns, but there are {num_classes} classes')
        return predict(*check_predictions(run, targets))['rank'] == 0
    run = read_labels(run, 'predictions')
    if run.shape != targets.shape:
        raise ValueError(f'a run has {tuple(run.shape)} predictions, but there are {len(targets)} targets')
    return run == targets

"""All open-set metrics of one score on one test.

Papers: Z. Liu et al., CVPR 2019 (F-measure); A. Dhamija et al., "Reducing Network Agnostophobia", NeurIPS 2018 (OSCR).
Source: written from the papers.
Differs from the papers / official code: see :mod:`timm_lt.evaluate.metrics.openset.f_measure`.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...._labels import read_labels
from ...._validate import check_class_counts
from ....class_distribution import ClassDistribution
from ..closed_set import resolve_split_rule
from .f_measure import (
    DEFINITIONS,
    UNKNOWN,
    as_scores,
    open_set_counts,
    open_set_f_measure,
    read_predictions,
    reject,
)


def open_set_report(
        scores: Any,
        predictions: Any,
        labels: Any,
        *,
        threshold: float | Mapping[str, Any],
        score: str = 'softmax',
        class_counts: Any = None,
        split_rule: str = 'gt100_lt20',
) -> dict[str, Any]:
    """Open-set metrics of one test, ready for JSON; F-measures are in [0, 1] as published, the others in percent.

    Args:
        scores: Scores of the test images, (N,), from :func:`open_set_scores`.
        predictions: Predicted classes before rejection, (N,).
        labels: Classes, (N,), -1 for unknown images.
        threshold: A number fixed beforehand, or the result of :func:`choose_threshold` on validation images.
        score: Name of the score, noted in the result.
        class_counts: Training images per class, (C,), for accuracies by class size.
        split_rule: Their rule, as in :func:`timm_lt.evaluate.report`.

    Returns:
        A dictionary with

        - ``f_measure_oltr``, ``f_measure_without_rejected``, ``counts``;
        - ``top1``: of the known images, a rejected one counts as wrong;
        - ``many``, ``medium``, ``few``: the same, mean over the classes of a split, and ``split_rule``; they need class
          counts;
        - ``auroc``: known against unknown;
        - ``fpr95``: share of unknown images kept where at least 95% of the known ones are;
        - ``oscr``: area under the rate of known and right over the rate of unknown kept;
        - ``threshold``, ``threshold_rule``, ``score``, ``num_known``, ``num_unknown``.

        The threshold-free ones are None without known or unknown images. An accuracy is None without known images of
        its classes.
    """
    chosen: Mapping[str, Any] = threshold if isinstance(threshold, Mapping) else {
        'threshold': threshold, 'rule': 'fixed beforehand'}
    scores, predictions = as_scores(scores), read_predictions(predictions)
    labels = read_labels(labels, 'labels', allow_empty=True)
    kept = reject(predictions, scores, chosen['threshold'])
    counts = open_set_counts(kept, labels)
    return {
        **{f'f_measure_{d}': open_set_f_measure(counts, d) for d in DEFINITIONS},
        'counts': counts,
        **_accuracy_after_rejection(kept, labels, class_counts, split_rule),
        **threshold_free(scores, predictions, labels),
        'threshold': float(chosen['threshold']),
        'threshold_rule': chosen['rule'],
        'score': score,
        'num_known': int((labels != UNKNOWN).sum()),
        'num_unknown': int((labels == UNKNOWN).sum()),
    }


def _accuracy_after_rejection(
        predictions: Tensor,
        labels: Tensor,
        class_counts: Any,
        split_rule: str,
) -> dict[str, Any]:
    known = labels != UNKNOWN
    labels, right = labels[known], (predictions == labels)[known]
    found: dict[str, Any] = {'top1': 100.0 * float(right.double().mean()) if len(labels) else None}
    if class_counts is None:
        return found
    distribution = ClassDistribution(check_class_counts(class_counts, min_count=0, who='open_set_report'))
    if len(labels) and int(labels.max()) >= distribution.num_classes:
        raise ValueError(
            f'labels must be -1 or in [0, {distribution.num_classes - 1}], the classes of class_counts, '
            f'got {int(labels.max())}')
    rule = resolve_split_rule(distribution, split_rule)
    images = torch.bincount(labels, minlength=distribution.num_classes)
    accuracy = 100.0 * torch.bincount(labels[right], minlength=distribution.num_classes).double() / images
    for name, mask in distribution.splits(rule).items():
        chosen = accuracy[mask & (images > 0)]
        found[name] = float(chosen.mean()) if len(chosen) else None
    return {**found, 'split_rule': rule}


def threshold_free(scores: Tensor, predictions: Tensor, labels: Tensor) -> dict[str, float | None]:
    """``auroc``, ``fpr95`` and ``oscr`` in percent; None without known or without unknown images.

    Images of one score are kept or rejected together. AUROC counts a tie of a known and an unknown image as one half.
    An image whose score is NaN ranks last, and is never right.
    """
    known = labels != UNKNOWN
    if not bool(known.any()) or bool(known.all()):
        return {'auroc': None, 'fpr95': None, 'oscr': None}
    correct = known & (predictions == labels) & ~scores.isnan()
    scores = scores.double().masked_fill(scores.isnan(), -torch.inf)
    order = scores.argsort(descending=True, stable=True)
    ordered = scores[order]
    ends = torch.ones(len(ordered), dtype=torch.bool)
    ends[:-1] = ordered[:-1] != ordered[1:]
    kept_known = known[order].cumsum(0)[ends].double() / known.sum()
    kept_unknown = (~known)[order].cumsum(0)[ends].double() / (~known).sum()
    right = correct[order].cumsum(0)[ends].double() / known.sum()

    def area(rate: Tensor) -> float:
        start = torch.zeros(1, dtype=torch.float64)
        return 100.0 * float(torch.trapezoid(torch.cat([start, rate]), torch.cat([start, kept_unknown])))

    return {
        'auroc': area(kept_known), 'fpr95': 100.0 * float(kept_unknown[kept_known >= 0.95][0]), 'oscr': area(right)}

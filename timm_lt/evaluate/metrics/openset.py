"""Open-set evaluation: images of known classes and of none of them.

Papers: Z. Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (F-measure, prototypes);
D. Hendrycks and K. Gimpel, ICLR 2017 (softmax score); W. Liu et al., "Energy-based Out-of-distribution Detection",
NeurIPS 2020, Eq. (4) (energy score); A. Dhamija et al., "Reducing Network Agnostophobia", NeurIPS 2018 (OSCR).
Source: written from the papers.
Differs from the official code: nothing is divided by 0: without a true positive F is 0. The threshold is chosen by
:func:`choose_threshold` on validation images; published code fixes it, or tunes it on the test set.

Known images carry their class, unknown ones the label -1. A higher score is more likely known; an image is rejected
if its score lies below the threshold. With TP = known and right, F = 2 TP / (2 TP + FP + FN), and by definition

- ``'oltr'``: FP + FN = known with a wrong label + known rejected + unknown kept;
- ``'without_rejected'`` (two repositories, reads higher): known rejected are not counted.

An image that is not finite (see :mod:`timm_lt.evaluate.metrics.predictions`) has the score NaN in every kind of score:
it is rejected at any threshold, and no threshold or prototype is fitted to it.
"""

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..._labels import read_labels
from ..._validate import check_class_counts, check_option, check_range
from ...class_distribution import ClassDistribution
from .closed_set import resolve_split_rule
from .predictions import CHUNK_ELEMENTS, finite_rows

UNKNOWN = -1
SCORES = ('softmax', 'energy', 'prototype')
DEFINITIONS = ('oltr', 'without_rejected')


@torch.no_grad()
def open_set_scores(
        logits: Any = None,
        *,
        score: str = 'softmax',
        features: Any = None,
        prototypes: Any = None,
        temperature: float = 1.0,
) -> Tensor:
    """How likely each image belongs to a known class, (N,), on the CPU; higher is more likely, NaN if not finite.

    Args:
        logits: (N, C), for ``'softmax'`` and ``'energy'``.
        score: ``'softmax'``: largest softmax value. ``'energy'``: ``T logsumexp(z / T)``. ``'prototype'``: minus the
            distance of the normalised feature to the nearest class prototype.
        features: (N, D), for ``'prototype'``.
        prototypes: (C, D), for ``'prototype'``, see :func:`class_prototypes`.
        temperature: T of the energy.
    """
    check_option('score', score, SCORES)
    if score == 'prototype':
        if features is None or prototypes is None:
            raise ValueError("score='prototype' needs features=(N, D) and prototypes=class_prototypes(...)")
        features = F.normalize(_as_float(features), dim=1)
        prototypes = _as_float(prototypes).to(features)
        known = torch.isfinite(prototypes).all(1)
        return -torch.cdist(features, prototypes[known]).min(1).values.cpu()
    if logits is None:
        raise ValueError(f'score={score!r} needs logits of shape (N, C)')
    logits = torch.as_tensor(logits).detach()
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
    parts = []
    for start in range(0, len(logits), rows):
        z = _as_float(logits[start:start + rows])
        found = z.softmax(1).amax(1) if score == 'softmax' else temperature * (z / temperature).logsumexp(1)
        parts.append(found.masked_fill(~finite_rows(z), torch.nan))
    return torch.cat(parts).cpu()


@torch.no_grad()
def class_prototypes(features: Any, targets: Any, num_classes: int) -> Tensor:
    """Mean of the normalised features of each class, normalised, (C, D); NaN for a class without an image.

    Args:
        features: Features of training images, (N, D).
        targets: Their classes, (N,).
        num_classes: C.

    Raises:
        ValueError: If a feature is not finite.
    """
    features = F.normalize(_as_float(features), dim=1)
    broken = int((~features.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f'{broken} of {len(features)} features are NaN or infinite: no prototype can be computed; does the network '
            f'have NaN weights?')
    targets = read_labels(targets, allow_empty=True).to(features.device)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, targets, features)
    counts = torch.bincount(targets, minlength=num_classes)
    return torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), torch.nan)


def reject(predictions: Any, scores: Any, threshold: float) -> Tensor:
    """Predictions with -1 where the score is below the threshold, (N,), int64, on the CPU."""
    predictions, scores = _read_predictions(predictions), _as_scores(scores)
    return predictions.masked_fill(~(scores >= threshold), UNKNOWN)  # so that NaN is rejected, too


def open_set_counts(predictions: Any, labels: Any) -> dict[str, int]:
    """Images of each outcome; ``predictions`` are those of :func:`reject`, unknown images have the label -1."""
    predictions, labels = _read_predictions(predictions), read_labels(labels, 'labels', allow_empty=True)
    if predictions.shape != labels.shape:
        raise ValueError(
            f'predictions and labels must both be (N,), got {tuple(predictions.shape)} and {tuple(labels.shape)}')
    known, kept = labels != UNKNOWN, predictions != UNKNOWN
    right = known & (predictions == labels)
    return {
        'right': int(right.sum()),
        'wrong_kept': int((known & kept & ~right).sum()),
        'known_rejected': int((known & ~kept).sum()),
        'unknown_kept': int((~known & kept).sum()),
        'unknown_rejected': int((~known & ~kept).sum()),
    }


def open_set_f_measure(counts: Mapping[str, int], definition: str = 'oltr') -> float:
    """F-measure in [0, 1] from :func:`open_set_counts`, in the named definition (see the module)."""
    check_option('definition', definition, DEFINITIONS)
    errors = counts['wrong_kept'] + counts['unknown_kept']
    if definition == 'oltr':
        errors += counts['known_rejected']
    return 2 * counts['right'] / (2 * counts['right'] + errors) if counts['right'] else 0.0


def choose_threshold(
        scores: Any,
        predictions: Any = None,
        labels: Any = None,
        *,
        keep: float = 0.95,
) -> dict[str, Any]:
    """A threshold from validation images; never hand over test images.

    Args:
        scores: Scores of validation images, (N,).
        predictions: Their predicted classes, (N,).
        labels: Their classes, (N,), -1 for unknown ones. If some are unknown, the threshold with the largest
            F-measure (OLTR) is taken; otherwise the one that keeps the share ``keep`` of the known images.
        keep: Share of known images to keep.

    Returns:
        ``threshold`` and ``rule``, a sentence that says how it was chosen.
    """
    check_range('keep', keep, 0, 1, low_open=True)
    scores = _as_scores(scores).double()
    labels = None if labels is None else read_labels(labels, 'labels', allow_empty=True)
    if scores.numel() == 0 or (labels is not None and not bool((labels != UNKNOWN).any())):
        raise ValueError(
            f'choose_threshold needs at least one validation image of a known class, got {scores.numel()} images'
            f'{", all labelled -1 (unknown)" if scores.numel() else ""}')
    broken = int((~scores.isfinite()).sum())
    if broken:
        raise ValueError(
            f'{broken} of {scores.numel()} validation scores are NaN or infinite: no threshold can be chosen; does the '
            f'network have NaN weights?')
    if labels is None or predictions is None or not bool((labels == UNKNOWN).any()):
        if labels is not None:
            scores = scores[labels != UNKNOWN]
        dropped = int((1 - keep) * len(scores) + 1e-9)  # the last digit of 1 - keep must not cost an image
        threshold = scores.sort().values[dropped]
        return {
            'threshold': float(threshold),
            'rule': f'keeps {100 * keep:g}% of the known validation images, no unknown image seen'}
    # From the highest score down, each image more is kept; F at every place where the score changes.
    order = scores.argsort(descending=True, stable=True)
    known = (labels != UNKNOWN)[order]
    right = known & (_read_predictions(predictions)[order] == labels[order])
    tp = right.cumsum(0).double()
    errors = (known & ~right).cumsum(0) + (~known).cumsum(0) + (known.sum() - known.cumsum(0))
    f = 2 * tp / (2 * tp + errors).clamp(min=1)
    ordered = scores[order]
    last_of_tie = torch.ones_like(known)
    last_of_tie[:-1] = ordered[:-1] != ordered[1:]
    best = int(f.masked_fill(~last_of_tie, -1.0).argmax())
    return {
        'threshold': float(ordered[best]),
        'rule': 'largest F-measure (OLTR) on validation images with known and unknown classes'}


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
    """Open-set figures of one test, ready for JSON; F-measures are in [0, 1] as published, the others in percent.

    Args:
        scores: Scores of the test images, (N,), from :func:`open_set_scores`.
        predictions: Predicted classes before rejection, (N,).
        labels: Classes, (N,), -1 for unknown images.
        threshold: A number fixed beforehand, or the result of :func:`choose_threshold` on validation images.
        score: Name of the score, noted in the result.
        class_counts: Training images per class, (C,), for accuracies by class size.
        split_rule: Their rule, as in :func:`timm_lt.evaluate.report`.

    Returns:
        ``f_measure_oltr``, ``f_measure_without_rejected``, ``counts``, ``top1`` (known images, a rejected one counts as
        wrong), with class counts ``many``, ``medium``, ``few`` (the same, mean over the classes of a split) and
        ``split_rule``, ``auroc`` (known against unknown),
        ``fpr95`` (share of unknown images kept where at least 95% of the known ones are), ``oscr`` (area under the
        rate of known and right over the rate of unknown kept), ``threshold``, ``threshold_rule``, ``score``,
        ``num_known``, ``num_unknown``. The threshold-free ones are None without known or unknown images, an accuracy
        without known images of its classes.
    """
    chosen: Mapping[str, Any] = threshold if isinstance(threshold, Mapping) else {
        'threshold': threshold, 'rule': 'fixed beforehand'}
    scores, predictions = _as_scores(scores), _read_predictions(predictions)
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


def _read_predictions(predictions: Any) -> Tensor:
    return read_labels(predictions, 'predictions', allow_empty=True)


def _as_scores(scores: Any) -> Tensor:
    return torch.as_tensor(scores).detach().cpu()


def _as_float(tensor: Any) -> Tensor:
    tensor = torch.as_tensor(tensor).detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()

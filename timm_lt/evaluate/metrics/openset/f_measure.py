"""Rejection at a threshold, its F-measures, and a threshold from validation images.

Paper: Z. Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019.
Source: written from the paper.
Differs from the official code: nothing is divided by 0: without a true positive F is 0. The threshold is chosen by
:func:`choose_threshold` on validation images; published code fixes it, or tunes it on the test set.

With TP = known and right, F = 2 TP / (2 TP + FP + FN), and by definition

- ``'oltr'``: FP + FN = known with a wrong label + known rejected + unknown kept;
- ``'without_rejected'`` (two repositories, reads higher): known rejected are not counted.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ...._labels import read_labels
from ...._validate import check_option, check_range

UNKNOWN = -1
DEFINITIONS = ('oltr', 'without_rejected')


def reject(predictions: Any, scores: Any, threshold: float) -> Tensor:
    """Predictions with -1 where the score is below the threshold, (N,), int64, on the CPU."""
    predictions, scores = read_predictions(predictions), as_scores(scores)
    return predictions.masked_fill(~(scores >= threshold), UNKNOWN)  # so that NaN is rejected, too


def open_set_counts(predictions: Any, labels: Any) -> dict[str, int]:
    """Images of each outcome; ``predictions`` are those of :func:`reject`, unknown images have the label -1."""
    predictions, labels = read_predictions(predictions), read_labels(labels, 'labels', allow_empty=True)
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
        labels: Their classes, (N,), -1 for unknown ones. If some are unknown, the threshold with the largest F-measure
            (OLTR) is taken. Otherwise the threshold keeps the share ``keep`` of the known images.
        keep: Share of known images to keep.

    Returns:
        ``threshold`` and ``rule``, a sentence that says how it was chosen.
    """
    check_range('keep', keep, 0, 1, low_open=True)
    scores = as_scores(scores).double()
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
    right = known & (read_predictions(predictions)[order] == labels[order])
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


def read_predictions(predictions: Any) -> Tensor:
    return read_labels(predictions, 'predictions', allow_empty=True)


def as_scores(scores: Any) -> Tensor:
    return torch.as_tensor(scores).detach().cpu()

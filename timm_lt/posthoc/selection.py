"""The tau that is best on validation images."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._registry import POSTHOC
from .._validate import check_numbers, check_option
from ._base import check_labelled
from .fitted import PostHoc
from .rebalancing import FLOOR

__all__ = ['METRICS', 'TAUS', 'choose_tau']

METRICS = ('balanced_accuracy', 'accuracy')
TAUS = tuple(i / 10 for i in range(21))


def choose_tau(
        method: str,
        val_logits: Tensor,
        val_targets: Tensor,
        *,
        class_counts: Any = None,
        classifier: nn.Module | None = None,
        reference: Tensor | Sequence[float] | None = None,
        transductive: bool = False,
        taus: Sequence[float] = TAUS,
        metric: str = 'balanced_accuracy',
        floor: float = FLOOR,
) -> PostHoc:
    """The correction whose tau is best on validation images; of equally good ones the smallest.

    Args:
        method: ``'rebalance'``, ``'logit_adjust'`` or ``'tau_normalize'``.
        val_logits: Logits of validation images, (M, C); never of test images.
        val_targets: Their labels, (M,).
        class_counts: ``'logit_adjust'``: training images per class, (C,).
        classifier: ``'tau_normalize'``: the classifier layer, or the timm model that has it, see :func:`class_norms`.
        reference: ``'rebalance'``: logits (K, C) of training images, or column sums (C,); None: the validation images.
        transductive: ``'rebalance'``: at test time the column sums come from the test images.
        taus: Values to try.
        metric: ``'balanced_accuracy'``: mean over the classes of the validation part of the share that is right;
            ``'accuracy'``: over images.
        floor: ``'rebalance'``: see :func:`rebalance_predictions`; 0 is the published rule.

    Returns:
        The correction, with ``metric`` and ``score``.

    Raises:
        TypeError: If tau-normalisation has no meaning for the classifier.
        ValueError: If an option is unknown or missing, shapes disagree, or logits are not finite.
    """
    check_option('method', method, [name for name in POSTHOC.names() if POSTHOC.trait(name, 'chooses_tau', True)])
    check_option('metric', metric, METRICS)
    val_logits, val_targets = check_labelled(val_logits, val_targets)
    taus = sorted(set(check_numbers('taus', taus, 0)))
    values = POSTHOC.info(method).factory().values(
        val_logits, class_counts=class_counts, classifier=classifier, reference=reference, transductive=transductive,
        floor=floor)
    candidates = [PostHoc(method, tau, **values) for tau in taus]
    scores = [_score(fitted(val_logits), val_targets, metric) for fitted in candidates]
    best = scores.index(max(scores))  # the first of equally good ones
    return dataclasses.replace(candidates[best], metric=metric, score=scores[best])


def _score(scores: Tensor, targets: Tensor, metric: str) -> float:
    right = (scores.argmax(1) == targets).double()
    if metric == 'accuracy':
        return float(right.mean())
    images = torch.bincount(targets)
    right_of_class = torch.bincount(targets, weights=right)
    present = images > 0
    return float((right_of_class[present] / images[present]).mean())

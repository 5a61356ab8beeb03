"""Prediction re-balancing.

Paper: F. Zhang et al., "Gradient-Aware Logit Adjustment Loss for Long-tailed Classifier", ICASSP 2024,
https://arxiv.org/abs/2403.09036
Implements: ``P_ic / (sum_i P_ic)**tau`` with P the softmax matrix of a whole set of images.
Source: written from the paper.
Differs from the paper / official code: the published rule takes its column sums from the test images themselves. It is
transductive, because the prediction for an image depends on the other test images. A single image has none. Column sums
may also come from training or validation images (inductive). Products become sums of logarithms, because the published
quotient underflows in float32 for a class that is never predicted.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._registry import register_posthoc
from .._validate import check_range
from ._base import PostHocMethod, at_least_float32, check_finite, tensor_like

__all__ = ['FLOOR', 'rebalance_predictions']

FLOOR = 0.001  # of the column sums of a chosen correction: a class that is never predicted does not win every row


def rebalance_predictions(
        logits: Tensor,
        tau: float = 1.0,
        reference: Tensor | Sequence[float] | None = None,
        *,
        floor: float = 0.0,
) -> Tensor:
    """Prediction re-balancing: ``log softmax(z)_ic - tau * log s_c``, with column sums ``s_c = sum_i softmax(z)_ic``.

    Args:
        logits: Unnormalised scores, (B, C); also (C,) with a reference. Without one, a single row (1, C) has no
            meaningful column sums. Its scores say nothing; at tau 1 all are 0.
        tau: Strength, >= 0; 0 changes no prediction. Published: 1, and 1.4 to 1.7 on the large benchmarks.
        reference: Where the column sums are taken. None: ``logits`` itself (transductive, as published). Logits (M, C)
            of training or validation images, or their column sums (C,): inductive, works for one image.
        floor: Column sums below ``floor`` times their mean count as that; 0 is the published rule. With tau > 1 the
            published score of a class grows without bound as its column sum goes to 0. A class that is never predicted
            then wins every row at any precision (with a warning). 0.001, the value of :func:`choose_tau` and
            :class:`PostHoc`, prevents it.

    Returns:
        Log-scores, the shape of ``logits``; the exponential is the published score. A logit of -inf stays -inf.

    Raises:
        ValueError: If shapes disagree, or tau or floor is out of range. Also if logits (C,) come without reference, or
            the logits that give the column sums are not finite.
    """
    check_range('tau', tau, 0)
    log_probs = at_least_float32('logits', logits).log_softmax(-1)
    if reference is None:
        if logits.ndim != 2:
            raise ValueError(
                f'without a reference the column sums come from the images themselves: logits must have shape (B, C), '
                f'got {tuple(logits.shape)}; pass reference= for a single image')
        check_finite('logits', log_probs)  # one NaN would make all column sums NaN
        log_sums = _replace_zero(log_probs.logsumexp(0))
    else:
        log_sums = log_column_sums(reference, logits.shape[-1])
    if floor == 0 and tau >= 1 and bool((raise_to_floor(log_sums, FLOOR) > log_sums).any()):
        warnings.warn(
            f'some classes are almost never predicted, and the published rule with tau {tau:g} lets them win; '
            f'pass floor={FLOOR}', stacklevel=2)
    return log_probs - tau * raise_to_floor(log_sums, floor).to(log_probs)


@register_posthoc('rebalance', paper='Zhang et al., ICASSP 2024')
class Rebalancing(PostHocMethod):
    """Prediction re-balancing with the column sums of reference images, or of the images that it is called on."""

    options = ('tau', 'transductive', 'floor', 'metric')
    transductive = True

    def needed(self, fitted: Any) -> str | None:
        return None if fitted.transductive else 'log_column_sums'

    def values(
            self,
            logits: Tensor,
            *,
            reference: Tensor | Sequence[float] | None = None,
            transductive: bool = False,
            floor: float = FLOOR,
            **given: Any,
    ) -> dict[str, Any]:
        if not transductive:
            sums = log_column_sums(logits if reference is None else reference, logits.shape[-1])
            return {'floor': floor, 'log_column_sums': sums}
        if reference is not None:
            raise ValueError('a transductive correction takes its column sums from the test images: pass no reference')
        return {'floor': floor, 'transductive': True}

    def apply(self, fitted: Any, logits: Tensor) -> Tensor:
        if fitted.transductive:
            if logits.ndim == 2 and len(logits) == 1:
                raise ValueError(
                    'a transductive correction takes its column sums from the images it is called on, and a single '
                    'image has none; pass all test images at once, or use one with log_column_sums')
            return rebalance_predictions(logits, fitted.tau, floor=fitted.floor)
        if len(fitted.log_column_sums) != logits.shape[-1]:
            raise ValueError(
                f'log_column_sums is of {len(fitted.log_column_sums)} classes, the logits of {logits.shape[-1]}')
        log_sums = raise_to_floor(tensor_like(fitted.log_column_sums, logits), fitted.floor)
        return at_least_float32('logits', logits).log_softmax(-1) - fitted.tau * log_sums


def log_column_sums(reference: Tensor | Sequence[float], num_classes: int) -> Tensor:
    """Logarithms of column sums, (C,), from logits (M, C) or from the sums (C,)."""
    reference = torch.as_tensor(reference).detach()
    if reference.ndim not in (1, 2) or reference.shape[-1] != num_classes or not len(reference):
        raise ValueError(
            f'reference must be logits (M, {num_classes}) or column sums ({num_classes},), '
            f'got shape {tuple(reference.shape)}')
    reference = reference.double()
    if reference.ndim == 2:
        check_finite('reference', reference)
        return _replace_zero(reference.log_softmax(1).logsumexp(0))
    if not bool((reference >= 0).all()) or not bool(reference.isfinite().all()):
        raise ValueError('reference column sums must be finite and >= 0; pass logits as (M, C)')
    return _replace_zero(reference.log())


def _replace_zero(log_sums: Tensor) -> Tensor:
    """A column sum of 0 (a class masked by -inf everywhere) as the smallest number."""
    return log_sums.masked_fill(log_sums == float('-inf'), math.log(torch.finfo(torch.float64).tiny))


def raise_to_floor(log_sums: Tensor, floor: float) -> Tensor:
    """Column sums below ``floor`` times their mean raised to that; all are logarithms."""
    check_range('floor', floor, 0, 1)
    if floor == 0:
        return log_sums
    return log_sums.clamp(min=log_sums.logsumexp(0) - math.log(len(log_sums)) + math.log(floor))

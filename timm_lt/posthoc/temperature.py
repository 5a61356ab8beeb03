"""Temperature scaling.

Paper: C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, https://arxiv.org/abs/1706.04599
Implements: Section 4.2, ``z / T`` with the T of least negative log-likelihood on validation images.
Source: written from the paper.
Differs from the paper / official code: T is found by bisection of the slope instead of by gradient descent.
"""

import math
from typing import Any

from torch import Tensor

from .._registry import register_posthoc
from .._validate import check_range
from ._base import PostHocMethod, at_least_float32, check_labelled
from .fitted import PostHoc

__all__ = ['fit_temperature', 'scale_temperature']


def scale_temperature(logits: Tensor, temperature: float = 1.0) -> Tensor:
    """Temperature scaling: ``z / T``; changes confidences and no prediction.

    Args:
        logits: Unnormalised scores, (B, C) or (C,).
        temperature: T > 0; above 1 less confident.
    """
    return at_least_float32('logits', logits) / check_range('temperature', temperature, 0, low_open=True)


def fit_temperature(val_logits: Tensor, val_targets: Tensor) -> PostHoc:
    """The temperature with the least negative log-likelihood on validation images, within [0.01, 100].

    The likelihood is concave in 1 / T, and the sign of its slope ``mean(z_y - sum_c p_c z_c)`` is bisected.

    Args:
        val_logits: Logits of validation images, (M, C).
        val_targets: Their labels, (M,).

    Raises:
        ValueError: If shapes disagree or logits are not finite.
    """
    logits, targets = check_labelled(val_logits, val_targets)
    logits = logits.double()
    values = logits.masked_fill(logits == float('-inf'), 0)  # a masked class has no part in the expectation
    right = logits.gather(1, targets[:, None]).mean()
    if right == float('-inf'):
        raise ValueError('some images have the logit -inf for their own class: no temperature makes that label likely')
    low, high = math.log(0.01), math.log(100.0)  # of 1 / T
    for _ in range(60):
        middle = (low + high) / 2
        expected = ((logits * math.exp(middle)).softmax(1) * values).sum(1).mean()
        low, high = (middle, high) if bool(right >= expected) else (low, middle)
    return PostHoc('temperature', math.exp(-(low + high) / 2))


@register_posthoc('temperature', paper='Guo et al., ICML 2017', needs=('validation',))
class Temperature(PostHocMethod):
    """Temperature scaling; ``tau`` of the correction is the temperature."""

    options = ()
    symbol = 'T'
    chooses_tau = False

    def apply(self, fitted: Any, logits: Tensor) -> Tensor:
        return scale_temperature(logits, fitted.tau)

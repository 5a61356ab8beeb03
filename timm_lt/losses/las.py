"""Label-aware smoothing.

Paper: Z. Zhong et al., "Improving Calibration for Long-Tailed Recognition" (MiSLAS), CVPR 2021,
https://arxiv.org/abs/2104.00466
Implements: Eq. (4), the label-aware smoothing loss, and its concave, linear and convex smoothing functions.
Source: written from the paper.
Differs from the paper / official code: the smoothing mass is spread over all C classes, as in the official code. The
paper's equation gives it to the other C - 1. With equal class sizes the official code gives 0/0; here every class then
has the smoothing of the head.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_option, check_range
from ._base import LongTailLoss
from ._targets import with_valid_labels
from ._terms import reduce

__all__ = ['label_aware_smoothing', 'label_aware_smoothing_loss']

SHAPES = ('concave', 'linear', 'convex', 'exp')


def label_aware_smoothing(
        class_counts: ClassCounts,
        smooth_head: float = 0.3,
        smooth_tail: float = 0.0,
        shape: str = 'concave',
        power: float = 2.0,
) -> Tensor:
    """Smoothing of each class, (C,), float64: ``smooth_tail`` at the smallest to ``smooth_head`` at the largest."""
    check_option('shape', shape, SHAPES)
    counts = check_class_counts(class_counts, who='label_aware_smoothing').double()
    low, high = counts.min(), counts.max()
    position = (counts - low) / (high - low) if high > low else torch.ones_like(counts)
    if shape == 'concave':
        position = torch.sin(position * math.pi / 2)
    elif shape == 'convex':
        position = 1 - torch.cos(position * math.pi / 2)
    elif shape == 'exp':
        position = position ** power
    return smooth_tail + (smooth_head - smooth_tail) * position


def label_aware_smoothing_loss(logits: Tensor, target: Tensor, smooth: Tensor, reduction: str = 'mean') -> Tensor:
    """``-(1 - e_y) * log p_y - e_y * mean_c log p_c``.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,), or soft targets (B, C): the expectation over the class.
        smooth: Smoothing ``e_c`` of each class, (C,), in [0, 1).
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    smooth = smooth.to(logits.dtype)
    log_p = F.log_softmax(logits, dim=1)
    uniform = -log_p.mean(1)
    if target.is_floating_point():
        loss = -(target * (1 - smooth) * log_p).sum(1) + (target @ smooth) * uniform
    else:
        own = smooth[with_valid_labels(target)]
        loss = (1 - own) * F.nll_loss(log_p, target, reduction='none') + own * uniform
    return reduce(loss, reduction, target)


@register_loss('las', paper='Zhong et al., CVPR 2021', needs=('class_counts',))
class LabelAwareSmoothingLoss(LongTailLoss):
    """Cross-entropy with more label smoothing for larger classes.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        smooth_head: Smoothing of the largest class, in [0, 1). The paper uses 0.3 on CIFAR-100-LT r=100.
        smooth_tail: Smoothing of the smallest class, in [0, 1); 0 for both is plain cross-entropy.
        shape: How the smoothing grows with the class size: 'concave' (the paper's choice), 'linear', 'convex' or 'exp'.
        power: Exponent of 'exp', > 0.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    smooth: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            smooth_head: float = 0.3,
            smooth_tail: float = 0.0,
            shape: str = 'concave',
            power: float = 2.0,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        class_counts = check_class_counts(class_counts, who=type(self).__name__)
        super().__init__(reduction, class_weight, len(class_counts))
        check_range('smooth_head', smooth_head, 0, 1, high_open=True)
        check_range('smooth_tail', smooth_tail, 0, 1, high_open=True)
        check_range('power', power, 0, low_open=True)
        self.register_buffer('smooth', label_aware_smoothing(class_counts, smooth_head, smooth_tail, shape, power))

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return label_aware_smoothing_loss(logits, target, self.smooth, reduction='none')

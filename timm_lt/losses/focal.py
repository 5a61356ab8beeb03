"""Focal loss on softmax probabilities.

Paper: T.-Y. Lin et al., "Focal Loss for Dense Object Detection", ICCV 2017, https://arxiv.org/abs/1708.02002
Implements: Eq. (4) and, with class weights, Eq. (5), with the softmax probability of the class as ``p_t``.
Source: written from the paper.
Differs from the paper / official code: with class weights, ``variant='released'`` follows the LDAM-DRW repository.
Long-tail papers compare with its softmax form. It sets ``p_t = exp(-w_y * CE)``, so the weight also enters the
modulating factor, and divides by B. ``variant='paper'`` (default) weighs the whole term and divides by the sum of the
weights. Without class weights the two are one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassWeight
from .._validate import check_option, check_range
from ._base import LongTailLoss
from ._targets import num_counted, with_valid_labels
from ._terms import reduce

__all__ = ['focal_loss']


def focal_term(cross_entropy: Tensor, gamma: float) -> Tensor:
    """``(1 - exp(-ce))**gamma * ce``, elementwise; gradients stay finite where ce is 0."""
    if gamma == 0:
        return cross_entropy
    smallest = torch.finfo(cross_entropy.dtype).tiny
    return (-torch.expm1(-cross_entropy)).clamp_min(smallest) ** gamma * cross_entropy


def focal_loss(logits: Tensor, target: Tensor, gamma: float = 2.0, reduction: str = 'mean') -> Tensor:
    """``-(1 - p_y)**gamma * log p_y``.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,) or soft targets (B, C).
        gamma: Focusing parameter, >= 0; 0 is plain cross-entropy. The paper uses 2, LDAM-DRW's code 1.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    if target.is_floating_point():
        return reduce((target * focal_term(-F.log_softmax(logits, dim=1), gamma)).sum(1), reduction)
    return reduce(focal_term(F.cross_entropy(logits, target, reduction='none'), gamma), reduction, target)


@register_loss('focal', paper='Lin et al., ICCV 2017')
class FocalLoss(LongTailLoss):
    """Cross-entropy that counts well-classified samples less, Lin et al., Eq. (4); with class weights Eq. (5).

    Args:
        gamma: Focusing parameter, >= 0; 0 is plain cross-entropy.
        variant: 'paper' or 'released': how class weights enter, see the module head.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    def __init__(
            self,
            *,
            gamma: float = 2.0,
            variant: str = 'paper',
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        super().__init__(reduction, class_weight)
        self.gamma = check_range('gamma', gamma, 0)
        self.variant = check_option('variant', variant, ('paper', 'released'))

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return focal_loss(logits, target, self.gamma, reduction='none')

    def weighted_per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.variant == 'paper' or self.class_weight is None:
            return super().weighted_per_sample(logits, target)
        weight = self.class_weight.to(logits.dtype)
        if target.is_floating_point():
            return (target * focal_term(-weight * F.log_softmax(logits, dim=1), self.gamma)).sum(1)
        cross_entropy = F.cross_entropy(logits, target, reduction='none')
        return focal_term(weight[with_valid_labels(target)] * cross_entropy, self.gamma)

    def normalizer(self, target: Tensor) -> Tensor:
        return super().normalizer(target) if self.variant == 'paper' else num_counted(target)

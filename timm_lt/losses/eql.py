"""Equalization loss, softmax form.

Paper: J. Tan et al., "Equalization Loss for Long-Tailed Object Recognition", CVPR 2020,
https://arxiv.org/abs/2003.05176
Implements: the "Softmax Equalization Loss", which the paper derives for image classification. It drops terms of rare
classes other than the sample's class at random from the denominator.
Source: written from the paper.
Differs from the paper / official code: no. A draw is made for each sample and class.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_range
from ._base import LongTailLoss
from ._targets import with_valid_labels
from ._terms import reduce

__all__ = ['eql_loss']


def eql_loss(logits: Tensor, target: Tensor, rare: Tensor, drop: Tensor, reduction: str = 'mean') -> Tensor:
    """``-log(exp(z_y) / sum_k kept_k exp(z_k))``.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,), or soft targets (B, C): the expectation over the class that is kept for certain.
        rare: Mask of the classes whose term may be dropped, (C,).
        drop: Mask of the draws, (B, C). A term leaves the denominator where the draw is True and the class is rare. The
            class of the sample always stays.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    dropped = drop & rare
    if not target.is_floating_point():
        dropped = dropped.scatter(1, with_valid_labels(target)[:, None], False)
        kept = logits.masked_fill(dropped, float('-inf'))
        return reduce(F.cross_entropy(kept, target, reduction='none'), reduction, target)
    # a very small number replaces -inf, so that the term of the class remains if all others are dropped
    lowest = torch.finfo(logits.dtype).min
    kept = torch.logsumexp(logits.masked_fill(dropped, lowest), dim=1, keepdim=True)
    denominator = torch.where(dropped, torch.logaddexp(kept, logits), kept)
    return reduce((target * (denominator - logits)).sum(1), reduction)


@register_loss('eql', paper='Tan et al., CVPR 2020', needs=('class_counts',))
class EqualizationLoss(LongTailLoss):
    """Cross-entropy in which rare classes are mostly spared the gradient of other classes' samples.

    Draws come from torch's global generator of the logits' device, as those of dropout do. In evaluation mode nothing
    is dropped. Every pass draws new numbers, also the further passes that a sharpness-aware optimizer makes over one
    batch.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        threshold: Classes with a share of the training images below it are rare, in [0, 1]. 0: plain cross-entropy.
        gamma: Probability that a term of a rare class is dropped, in [0, 1]; 0: plain cross-entropy. The paper
            uses 0.9.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    rare: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            threshold: float = 5e-3,
            gamma: float = 0.9,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        super().__init__(reduction, class_weight, len(counts))
        self.threshold = check_range('threshold', threshold, 0, 1)
        self.gamma = check_range('gamma', gamma, 0, 1)
        self.register_buffer('rare', counts / counts.sum() < threshold)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.training:
            drop = torch.rand(logits.shape, dtype=torch.float32, device=logits.device) < self.gamma
        else:
            drop = torch.zeros_like(logits, dtype=torch.bool)
        return eql_loss(logits, target, self.rare, drop, reduction='none')

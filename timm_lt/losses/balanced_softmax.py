"""Balanced softmax and logit adjustment.

Papers: J. Ren et al., "Balanced Meta-Softmax for Long-Tailed Visual Recognition", NeurIPS 2020, Eq. (3);
A. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, Eq. (10).
Source: written from the papers.
Differs from the paper / official code: no; balanced softmax is logit adjustment with tau = 1.
"""

import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_range
from ._base import LongTailLoss

__all__ = ['balanced_softmax_loss', 'logit_adjustment_loss']


def logit_adjustment_loss(
        logits: Tensor,
        target: Tensor,
        log_prior: Tensor,
        tau: float = 1.0,
        reduction: str = 'mean',
) -> Tensor:
    """Cross-entropy on logits shifted by the log class prior: ``CE(z + tau * log pi, y)``.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,) or soft targets (B, C).
        log_prior: Logarithm of the share of each class among the training images, (C,).
        tau: Strength of the shift, >= 0; 0 is plain cross-entropy, 1 balanced softmax.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    return F.cross_entropy(logits + tau * log_prior.to(logits.dtype), target, reduction=reduction)


@register_loss('logit_adjustment', paper='Menon et al., ICLR 2021', needs=('class_counts',))
class LogitAdjustmentLoss(LongTailLoss):
    """Cross-entropy on logits shifted by tau times the log class prior, Menon et al., Eq. (10).

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        tau: Strength of the shift, >= 0; 0 is plain cross-entropy. The paper uses 1.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    log_prior: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            tau: float = 1.0,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        super().__init__(reduction, class_weight, len(counts))
        self.tau = check_range('tau', tau, 0)
        self.register_buffer('log_prior', (counts / counts.sum()).log())

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return logit_adjustment_loss(logits, target, self.log_prior, self.tau, reduction='none')


def balanced_softmax_loss(logits: Tensor, target: Tensor, log_prior: Tensor, reduction: str = 'mean') -> Tensor:
    """Cross-entropy on logits shifted by the log class prior, :func:`logit_adjustment_loss` with tau = 1."""
    return logit_adjustment_loss(logits, target, log_prior, 1.0, reduction)


@register_loss('balanced_softmax', paper='Ren et al., NeurIPS 2020', needs=('class_counts',))
class BalancedSoftmaxLoss(LogitAdjustmentLoss):
    """Cross-entropy on logits shifted by the log class prior, Ren et al., Eq. (3).

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        super().__init__(class_counts, tau=1.0, reduction=reduction, class_weight=class_weight)

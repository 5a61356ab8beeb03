"""VS: vector-scaling loss.

Paper: G. Kini et al., "Label-Imbalanced and Group-Sensitive Classification under Overparameterization", NeurIPS 2021,
https://arxiv.org/abs/2103.01550
Implements: the vector-scaling loss: multiplicative and additive logit adjustment together. With ``truncate_epoch``
also truncated logit adjustment (TLA) of Z. Wang et al., "A Unified Generalization Analysis of Re-Weighting and
Logit-Adjustment for Imbalanced Learning", NeurIPS 2023, https://arxiv.org/abs/2310.04752.
Source: written from the papers.
Differs from the paper / official code: no. The multiplicative factor is written as a divisor
``Delta_c = (n_max / n_c)**gamma``, as in the official code.
"""

import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_range, check_whole
from ._base import LongTailLoss
from .balanced_softmax import logit_adjustment_loss

__all__ = ['vs_loss', 'vs_parameters']


def vs_parameters(class_counts: ClassCounts, gamma: float = 0.3, tau: float = 1.0) -> tuple[Tensor, Tensor]:
    """Divisor ``Delta_c = (n_max / n_c)**gamma`` and shift ``iota_c = tau * log pi_c`` of each class, (C,), float64."""
    counts = check_class_counts(class_counts, who='vs_parameters').double()
    return (counts.max() / counts) ** gamma, tau * (counts / counts.sum()).log()


def vs_loss(logits: Tensor, target: Tensor, delta: Tensor, iota: Tensor, reduction: str = 'mean') -> Tensor:
    """Cross-entropy on ``z / Delta + iota``.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,) or soft targets (B, C).
        delta: Divisor of each logit, (C,), > 0.
        iota: Shift of each logit, (C,).
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    return F.cross_entropy(logits / delta.to(logits.dtype) + iota.to(logits.dtype), target, reduction=reduction)


@register_loss('vs', paper='Kini et al., NeurIPS 2021', needs=('class_counts',))
class VSLoss(LongTailLoss):
    """Cross-entropy on logits divided by a power of the class size and shifted by the log class prior.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        gamma: Exponent of the divisor, >= 0; 0 is logit adjustment. The paper's code uses 0.3, SSE-SAM's 0.05.
        tau: Strength of the shift, >= 0; 0 with gamma 0 is plain cross-entropy. The paper's code uses 1, SSE-SAM's
            0.75.
        truncate_epoch: First epoch without the divisor (TLA), counted from 0; None: every epoch has it. Call
            :meth:`set_epoch` at the start of every epoch. TLA's code uses 320 of 400.
        truncated_tau: Strength of the shift from that epoch on, >= 0; None: tau.
        reduction, class_weight: See :class:`LongTailLoss`.

    Examples:
        >>> loss = VSLoss([500, 50, 5], gamma=0.05, truncate_epoch=320)
        >>> loss.set_epoch(320)
    """

    delta: Tensor
    iota: Tensor
    truncated_iota: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            gamma: float = 0.3,
            tau: float = 1.0,
            truncate_epoch: int | None = None,
            truncated_tau: float | None = None,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        class_counts = check_class_counts(class_counts, who=type(self).__name__)
        super().__init__(reduction, class_weight, len(class_counts))
        check_range('gamma', gamma, 0)
        check_range('tau', tau, 0)
        delta, iota = vs_parameters(class_counts, gamma, tau)
        self.register_buffer('delta', delta)
        self.register_buffer('iota', iota)
        if truncate_epoch is not None:
            check_whole('truncate_epoch', truncate_epoch, 0)
        elif truncated_tau is not None:
            raise ValueError('truncated_tau holds from truncate_epoch on: pass truncate_epoch too')
        self.truncate_epoch = truncate_epoch
        late = tau if truncated_tau is None else check_range('truncated_tau', truncated_tau, 0)
        self.register_buffer('truncated_iota', vs_parameters(class_counts, 0.0, late)[1], persistent=False)
        self.truncated = False

    def set_epoch(self, epoch: int, num_epochs: int | None = None) -> None:
        """Tell the loss the epoch that begins now; the epoch decides alone whether the divisor is in force."""
        self.truncated = self.truncate_epoch is not None and epoch >= self.truncate_epoch

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        if self.truncated:
            return logit_adjustment_loss(logits, target, self.truncated_iota, reduction='none')
        return vs_loss(logits, target, self.delta, self.iota, reduction='none')

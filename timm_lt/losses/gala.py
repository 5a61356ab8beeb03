"""GALA: gradient-aware logit adjustment.

Paper: F. Zhang et al., "Gradient-Aware Logit Adjustment Loss for Long-tailed Classifier", ICASSP 2024,
https://arxiv.org/abs/2403.09036
Implements: the adjusted cross-entropy with the accumulated gradients of the classifier.
Source: written from the paper.

The gradient of sample i with respect to its logits is ``g_i = softmax(z'_i) - onehot(y_i)``. The paper accumulates
``A[k, y_i] += |g_i[k]|`` over the whole training. ``theta_j = A[j, j]`` is the positive gradient that class vector j
received. ``phi_k = sum_{j != k} A[j, k]`` is the negative gradient that samples of class k sent to the other class
vectors. The adjusted logits of a sample of class y are ``z'_j = z_j + lambda1 * log(theta_j + 1e-3)``, the negative
ones (j != y) less ``lambda2 * log(phi_y + 1e-3)``.

Only a vector is kept. The entries of a softmax gradient sum to zero, so ``sum_{j != y} |g_i[j]| = |g_i[y]| = 1 -
p'_iy``. Therefore theta and phi are the same vector. One sample adds ``1 - p'_iy = 1 - exp(-loss_i)`` to entry ``y_i``.

Differs from the paper / official code: ``variant='paper'`` (default) takes the second margin as the paper words it, on
the negative logits only. The official code (``variant='released'``) subtracts it from every logit of the sample, which
the softmax cancels. It accumulates the gradient of the batch mean (1 / B of the above). It adds the running sum again
in every iteration, so early iterations weigh more.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_option, check_range
from ._base import LongTailLoss
from ._criterion import several_processes
from ._targets import num_counted, with_valid_labels
from ._terms import margin_losses, reduce

__all__ = ['gala_loss']

VARIANTS = ('paper', 'released')


def gala_loss(
        logits: Tensor,
        target: Tensor,
        gradient_sum: Tensor,
        lambda1: float = 1.2,
        lambda2: float = 0.9,
        epsilon: float = 1e-3,
        variant: str = 'paper',
        reduction: str = 'mean',
) -> Tensor:
    """Cross-entropy on logits adjusted by the accumulated gradients, which are taken as constants.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,), or soft targets (B, C): the expectation over the class of the sample.
        gradient_sum: Accumulated gradient of each class, theta = phi of the module head, (C,), >= 0.
        lambda1: Strength of the margin of every class, >= 0.
        lambda2: Strength of the margin of the negative classes, >= 0; without effect in 'released'.
        epsilon: Added before the logarithm, > 0.
        variant: 'paper' or 'released', see the module head.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    losses = _losses(logits, target, gradient_sum, lambda1, lambda2, epsilon, variant)
    return reduce((target * losses).sum(1) if target.is_floating_point() else losses, reduction, target)


def _losses(
        logits: Tensor,
        target: Tensor,
        gradient_sum: Tensor,
        lambda1: float,
        lambda2: float,
        epsilon: float,
        variant: str,
) -> Tensor:
    """Loss of each sample, (B,); for a soft target that of each sample for every class, (B, C)."""
    log_sum = torch.log(gradient_sum + epsilon).to(logits.dtype)
    adjusted = torch.add(logits, log_sum, alpha=lambda1)
    # softmax does not tell a margin off all negative logits from that margin added to the logit of the class; it
    # cancels a margin off all logits ('released')
    has_own_margin = variant == 'paper' and lambda2 > 0
    if target.is_floating_point():
        return margin_losses(adjusted, -lambda2 * log_sum) if has_own_margin else -F.log_softmax(adjusted, dim=1)
    if has_own_margin:
        column = with_valid_labels(target)[:, None]
        adjusted.scatter_add_(1, column, lambda2 * log_sum[column])
    return F.cross_entropy(adjusted, target, reduction='none')


@register_loss('gala', paper='Zhang et al., ICASSP 2024', needs=('class_counts',))
class GALALoss(LongTailLoss):
    """Cross-entropy on logits adjusted by the gradients that each class vector has received so far.

    In training mode with gradients enabled, each call first computes the loss with the present statistics. It then adds
    the gradients of its batch to them, see :meth:`statistics` for how and when. In evaluation mode the logits are not
    adjusted. Two vectors of length C at most are kept, in buffers that are saved and resumed. A commit sums over the
    processes of the default group, so all ranks hold the statistics of the joint batch.

    A soft target counts as a sample of each of its classes, by its share.

    Args:
        class_counts: Training images per class, (C,), each >= 1; only their number is used.
        lambda1: Strength of the margin of every class, >= 0. The paper's run on CIFAR-100-LT r=100 uses 1.2.
        lambda2: Strength of the margin of the negative classes, >= 0; 0 for both is plain cross-entropy. That run uses
            0.9.
        epsilon: Added before the logarithm, > 0.
        variant: 'paper' or 'released', see the module head.
        reduction, class_weight: See :class:`LongTailLoss`. Class weights do not enter the statistics.

    Examples:
        >>> loss = GALALoss([500, 50, 5])
        >>> loss(torch.randn(4, 3), torch.tensor([0, 0, 1, 2])).shape
        torch.Size([])
    """

    gradient_sum: Tensor
    repeated_sum: Tensor  # None in 'paper', which reads gradient_sum alone
    pending: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            lambda1: float = 1.2,
            lambda2: float = 0.9,
            epsilon: float = 1e-3,
            variant: str = 'paper',
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        num_classes = check_class_counts(class_counts, who=type(self).__name__).numel()
        super().__init__(reduction, class_weight, num_classes)
        self.lambda1 = check_range('lambda1', lambda1, 0)
        self.lambda2 = check_range('lambda2', lambda2, 0)
        self.epsilon = check_range('epsilon', epsilon, 0, low_open=True)
        self.variant = check_option('variant', variant, VARIANTS)
        # float64: over a training run small terms are added to a large sum
        sums = torch.zeros(num_classes + 1, dtype=torch.float64, device='cpu')
        self.register_buffer('gradient_sum', sums[:-1].clone())
        self.register_buffer('repeated_sum', sums[:-1].clone() if variant == 'released' else None)
        self.register_buffer('pending', sums, persistent=False)  # the last entry counts samples

    @property
    def margin_sum(self) -> Tensor:
        """The accumulated gradients that the margins are made of, (C,)."""
        return self.gradient_sum if self.variant == 'paper' else self.repeated_sum

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return gala_loss(
            logits, target, self.margin_sum, self.lambda1, self.lambda2, self.epsilon, self.variant, reduction='none')

    def weighted_per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        soft = target.is_floating_point()
        if self.training:
            losses = _losses(
                logits, target, self.margin_sum, self.lambda1, self.lambda2, self.epsilon, self.variant)
            if self.statistics_mode != 'hold' and torch.is_grad_enabled():
                self._stage(losses.detach(), target)
        else:
            losses = -F.log_softmax(logits, dim=1) if soft else F.cross_entropy(logits, target, reduction='none')
        weight = None if self.class_weight is None else self.class_weight.to(losses.dtype)
        if soft:
            return (losses * (target if weight is None else target * weight)).sum(1)
        return losses if weight is None else losses * weight[with_valid_labels(target)]

    @torch.no_grad()
    def _stage(self, losses: Tensor, target: Tensor) -> None:
        # minus |g_y| = p_y - 1; a logit that overflowed must not spoil the statistics for good
        minus_gradient = torch.nan_to_num(torch.expm1(-losses), nan=0.0).to(self.pending.dtype)
        if self.statistics_mode == 'immediate' and self.variant == 'paper' and not several_processes():
            total = self.gradient_sum  # the commit below, in one operation
        else:
            total = self.pending
        if target.is_floating_point():
            total[:target.shape[1]] -= (target * minus_gradient).sum(0)
        else:
            # the loss of an ignored sample is 0, and so is its gradient
            total.index_add_(0, with_valid_labels(target), minus_gradient, alpha=-1)
        if total is self.pending:
            total[-1] += target.sum() if target.is_floating_point() else num_counted(target)
            if self.statistics_mode == 'immediate':
                self.commit_statistics()

    @torch.no_grad()
    def commit_statistics(self) -> None:
        if several_processes():
            dist.all_reduce(self.pending)
        if self.variant == 'paper':
            self.gradient_sum += self.pending[:-1]
        else:
            count = self.pending[-1]
            self.gradient_sum += self.pending[:-1] / count.clamp_min(1)
            # every step with samples adds the running sum again
            self.repeated_sum += self.gradient_sum * (count > 0)
        self.pending.zero_()

    def discard_statistics(self) -> None:
        self.pending.zero_()

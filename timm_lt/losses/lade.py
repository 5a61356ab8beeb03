"""LADE: label distribution disentangling.

Paper: Y. Hong et al., "Disentangling Label Distribution for Long-tailed Visual Recognition", CVPR 2021,
https://arxiv.org/abs/2012.00321
Implements: balanced softmax plus the regularised Donsker-Varadhan bound of each class's log density ratio, weighted by
the class prior.
Source: written from the paper.
Differs from the paper / official code: the mean of ``exp(z_c)`` under a uniform label distribution is an
importance-weighted mean over the batch. The paper weighs sample i by ``p_u(y_i) / p_s(y_i)``: ``variant='paper'``
(default). The official code weighs by the class c of the column instead: ``variant='released'``.
"""

import math

import torch
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_option, check_range
from ._base import LongTailLoss
from ._targets import of_counted_samples
from ._terms import reduce
from .balanced_softmax import balanced_softmax_loss

__all__ = ['lade_loss', 'lade_regularizer']


def lade_regularizer(
        logits: Tensor,
        target: Tensor,
        log_prior: Tensor,
        remine_lambda: float = 0.1,
        variant: str = 'paper',
) -> Tensor:
    """Shares of the samples in the regulariser, (B,); their sum is its value for the batch.

    The value is ``sum_c pi_c * (-mean_{i in c} z_ic + m_c + remine_lambda * m_c**2)`` with
    ``m_c = log((1/B) sum_i u_i exp(z_ic))`` and ``u_i = 1 / (C * pi_{y_i})``. The samples of class c in the batch share
    its first term (a class without samples has none). All samples share the others equally.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices, (B,).
        log_prior: Logarithm of the share of each class among the training images, (C,).
        remine_lambda: Weight of the squared term, which keeps the bound from drifting, >= 0.
        variant: 'paper', or 'released': ``u = 1 / (C * pi_c)`` of the column c instead of ``u_i``.
    """
    batch, num_classes = logits.shape
    log_prior = log_prior.to(logits.dtype)
    importance = -math.log(num_classes) - log_prior
    shifted = logits + (importance if variant == 'released' else importance[target][:, None])
    log_mean = torch.logsumexp(shifted, dim=0) - math.log(batch)
    common = (log_prior.exp() * (log_mean + remine_lambda * log_mean ** 2)).sum() / batch
    in_batch = torch.zeros_like(log_prior).index_add_(0, target, torch.ones_like(logits[:, 0]))
    own = logits.gather(1, target[:, None]).squeeze(1)
    return common - own * log_prior.exp()[target] / in_batch[target]


def lade_loss(
        logits: Tensor,
        target: Tensor,
        log_prior: Tensor,
        regularizer_weight: float = 0.1,
        remine_lambda: float = 0.1,
        variant: str = 'paper',
        reduction: str = 'mean',
) -> Tensor:
    """Balanced softmax plus ``regularizer_weight`` times the regulariser of the batch.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices, (B,); samples with -100 are left out.
        log_prior: Logarithm of the share of each class among the training images, (C,).
        regularizer_weight: Factor on the regulariser, >= 0; 0 is balanced softmax.
        remine_lambda: See :func:`lade_regularizer`.
        variant: 'paper' or 'released', see the module head.
        reduction: 'none' -> (B,), each sample with B times its share of the regulariser; 'mean' or 'sum' of these.

    Returns:
        Loss in nats.
    """
    def values(logits: Tensor, target: Tensor) -> Tensor:
        shares = lade_regularizer(logits, target, log_prior, remine_lambda, variant)
        loss = balanced_softmax_loss(logits, target, log_prior, reduction='none')
        return loss + regularizer_weight * logits.shape[0] * shares

    return reduce(of_counted_samples(values, target, logits), reduction, target)


@register_loss('lade', paper='Hong et al., CVPR 2021', needs=('class_counts',), soft_targets=False)
class LADELoss(LongTailLoss):
    """Balanced softmax with a regulariser that drives each logit towards the log density ratio of its class.

    The regulariser couples the samples of a batch. A per-sample value is the sample's balanced softmax plus B times its
    share of the regulariser. Their mean is the loss. Under several processes each part of the batch has a separate
    regulariser. Soft targets are refused, because the regulariser is an expectation over the images *of* a class.
    Smoothing or mixing would make every image one of every class.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        regularizer_weight: Factor on the regulariser, >= 0; 0 is balanced softmax. The paper uses 0.1 on CIFAR.
        remine_lambda: Weight of the squared term inside the regulariser, >= 0.
        variant: 'paper' or 'released', see the module head.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    soft_targets = False
    couples_samples = True

    log_prior: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            regularizer_weight: float = 0.1,
            remine_lambda: float = 0.1,
            variant: str = 'paper',
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        super().__init__(reduction, class_weight, len(counts))
        self.regularizer_weight = check_range('regularizer_weight', regularizer_weight, 0)
        self.remine_lambda = check_range('remine_lambda', remine_lambda, 0)
        self.variant = check_option('variant', variant, ('paper', 'released'))
        self.register_buffer('log_prior', (counts / counts.sum()).log())

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return lade_loss(
            logits, target, self.log_prior, self.regularizer_weight, self.remine_lambda, self.variant, reduction='none')

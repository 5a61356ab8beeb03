"""Class-balanced loss: weights from the effective number of samples.

Paper: Y. Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
https://arxiv.org/abs/1901.05555
Implements: the class-balanced softmax, sigmoid and focal losses (Sections 4.1 to 4.3). Weights are
``(1 - beta) / (1 - beta**n_c)``, normalised to sum C.
Source: written from the paper.
Differs from the paper / official code: for the softmax form, ``variant='released'`` follows the code that most projects
use. It takes the binary cross-entropy of the softmax probabilities, averaged over B x C. ``variant='paper'`` (default)
is the weighted softmax cross-entropy. The sigmoid and focal forms are the same in both.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_option, check_range
from ._base import LongTailLoss
from ._targets import with_valid_labels
from ._terms import reduce
from .drw import effective_number_weights
from .focal import focal_term

__all__ = ['class_balanced_loss']

FORMS = ('softmax', 'sigmoid', 'focal')


def class_balanced_loss(
        logits: Tensor,
        target: Tensor,
        weight: Tensor,
        form: str = 'softmax',
        gamma: float = 2.0,
        variant: str = 'paper',
        reduction: str = 'mean',
) -> Tensor:
    """Loss of each sample times the weight of its class; 'mean' divides by B.

    Args:
        logits: Unnormalised scores, (B, C).
        target: Class indices (B,), or soft targets (B, C): the expectation over the class.
        weight: Weight of each class, (C,).
        form: 'softmax' (cross-entropy), 'sigmoid' (sum over the C outputs of the binary cross-entropy) or 'focal'
            (the same with the focusing factor).
        gamma: Focusing parameter of 'focal', >= 0; 0 is 'sigmoid'.
        variant: 'paper' or 'released', see the module head.
        reduction: 'none' -> (B,), 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    shares = target
    if not target.is_floating_point():
        shares = F.one_hot(with_valid_labels(target), logits.shape[1]).to(logits.dtype)
    weighted = shares * weight.to(logits.dtype)
    if form == 'softmax' and variant == 'paper':
        return reduce(-(weighted * F.log_softmax(logits, dim=1)).sum(1), reduction, target)
    if form == 'softmax':
        p = F.softmax(logits, dim=1)
        there = p.nan_to_num(0.5)  # torch refuses NaN here; a NaN loss makes a gradient scaler skip the step
        positive, negative = (
            (F.binary_cross_entropy(there, torch.full_like(p, t), reduction='none') + 0 * p) / logits.shape[1]
            for t in (1.0, 0.0))
    else:
        gamma = gamma if form == 'focal' else 0.0
        positive = focal_term(F.softplus(-logits, threshold=40), gamma)
        negative = focal_term(F.softplus(logits, threshold=40), gamma)
    # for class c: positive_c + sum_{k != c} negative_k; a hard target has exactly 0 for the negative of its own class
    of_others = weighted.sum(1, keepdim=True) - weighted
    return reduce((weighted * positive + of_others * negative).sum(1), reduction, target)


@register_loss('class_balanced', paper='Cui et al., CVPR 2019', needs=('class_counts',))
class ClassBalancedLoss(LongTailLoss):
    """Cross-entropy, softmax or sigmoid, weighted by the inverse effective number of samples of the class.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        beta: In [0, 1); 0 weighs all classes alike, towards 1 by inverse frequency. The paper chooses among 0.9, 0.99,
            0.999 and 0.9999.
        form: 'softmax', 'sigmoid' or 'focal', see :func:`class_balanced_loss`.
        gamma: Focusing parameter of 'focal', >= 0. The paper chooses among 0.5, 1 and 2.
        variant: 'paper' or 'released', see the module head.
        reduction, class_weight: See :class:`LongTailLoss`; ``class_weight`` multiplies the loss's own weights.
    """

    balance_weight: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            beta: float = 0.9999,
            form: str = 'softmax',
            gamma: float = 2.0,
            variant: str = 'paper',
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__)
        super().__init__(reduction, class_weight, len(counts))
        self.form = check_option('form', form, FORMS)
        self.gamma = check_range('gamma', gamma, 0)
        self.variant = check_option('variant', variant, ('paper', 'released'))
        self.register_buffer('balance_weight', effective_number_weights(counts, beta))

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        return class_balanced_loss(
            logits, target, self.balance_weight, self.form, self.gamma, self.variant, reduction='none')

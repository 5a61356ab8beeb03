"""Sampling by a power of the class size.

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (1): class c has share ``n_c**q / sum_j n_j**q``.
Source: written from the paper.
Differs from the paper / official code: images of a class are cycled, not drawn with replacement.
"""

from typing import Any

from torch import Tensor

from .._registry import register_sampler
from .._validate import check_range
from ._base import LongTailSampler


@register_sampler('power', paper='Kang et al., ICLR 2020', needs=('targets',))
class PowerSampler(LongTailSampler):
    """Classes in proportion to a power of their size, Kang et al., Eq. (1).

    Epoch length N; small classes repeat, of large ones a random part is left out.

    Args:
        targets: Labels of the training images, (N,).
        q: Exponent, in [0, 1]: 1 is plain shuffling, 0.5 ``square_root``, 0 equal shares as of ``class_balanced``.
        options: ``seed, num_replicas, rank, num_samples, drop_last, num_classes``, see :class:`LongTailSampler`.

    Examples:
        >>> PowerSampler([0] * 16 + [1], q=0.25).class_shares(0).tolist()
        [0.6666666666666666, 0.3333333333333333]
    """

    law_options = ('q',)

    def __init__(self, targets: Any, *, q: float = 0.5, **options: Any) -> None:
        self.q = check_range('q', q, 0, 1)
        super().__init__(targets, **options)

    def class_shares(self, epoch: int) -> Tensor:
        weight = self.class_counts.double() ** self.q
        return weight / weight.sum()

"""Reversed sampling, the second branch of BBN.

Paper: B. Zhou et al., "BBN: Bilateral-Branch Network with Cumulative Learning for Long-Tailed Visual Recognition",
CVPR 2020, https://arxiv.org/abs/1912.02413
Implements: the reversed sampler of Section 4.1: ``w_c = n_max / n_c``, class c has share ``w_c / sum_j w_j``.
Source: written from the paper.
Differs from the paper / official code: images of a class are cycled, not drawn with replacement.
"""

from torch import Tensor

from .._registry import register_sampler
from ._base import LongTailSampler


@register_sampler('reverse', paper='Zhou et al., CVPR 2020', needs=('targets',))
class ReverseSampler(LongTailSampler):
    """Classes in proportion to the inverse of their size: the smallest class comes most often.

    Zhou et al., Section 4.1.

    Epoch length N; images of small classes repeat many times.

    Args:
        targets, seed, num_replicas, rank, num_samples, drop_last, num_classes: See :class:`LongTailSampler`.

    Examples:
        >>> sampler = ReverseSampler([0, 0, 0, 1])
        >>> sampler.class_shares(0).tolist()
        [0.25, 0.75]
    """

    def class_shares(self, epoch: int) -> Tensor:
        inverse = 1 / self.class_counts.double()
        return inverse / inverse.sum()

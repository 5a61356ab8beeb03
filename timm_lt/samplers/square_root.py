"""Square-root sampling.

Papers: D. Mahajan et al., "Exploring the Limits of Weakly Supervised Pretraining", ECCV 2018,
https://arxiv.org/abs/1805.00932;
B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Kang et al. Eq. (1) with q = 1/2: class c has share ``n_c**0.5 / sum_j n_j**0.5``.
Source: written from the papers.
Differs from the paper / official code: images of a class are cycled, not drawn with replacement.
"""

from torch import Tensor

from .._registry import register_sampler
from ._base import LongTailSampler


@register_sampler('square_root', paper='Mahajan et al., ECCV 2018', needs=('targets',))
class SquareRootSampler(LongTailSampler):
    """Classes in proportion to the square root of their size: half way between instance- and class-balanced.

    Kang et al., Eq. (1) with q = 1/2.

    Epoch length N; small classes repeat, of large ones a random part is left out.

    Args:
        targets, seed, num_replicas, rank, num_samples, drop_last, num_classes: See :class:`LongTailSampler`.

    Examples:
        >>> sampler = SquareRootSampler([0] * 9 + [1], num_samples=8)
        >>> sum(i == 9 for i in sampler)
        2
    """

    def class_shares(self, epoch: int) -> Tensor:
        root = self.class_counts.double().sqrt()
        return root / root.sum()

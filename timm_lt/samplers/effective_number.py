"""Sampling by the inverse effective number of images.

Paper: Y. Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
https://arxiv.org/abs/1901.05555
Implements: Eq. (2), ``E_n = (1 - beta**n) / (1 - beta)``, with the weight 1 / E_n of an image (Section 4.1) as its
chance of being drawn. Class c has share ``(n_c / E_{n_c}) / sum_j (n_j / E_{n_j})``.
Source: written from the paper.
Differs from the paper / official code: the paper weights the loss, here the same weights draw; images of a class are
cycled, not drawn with replacement.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .._registry import register_sampler
from .._validate import check_range
from ._base import LongTailSampler


@register_sampler('effective_number', paper='Cui et al., CVPR 2019', needs=('targets',))
class EffectiveNumberSampler(LongTailSampler):
    """Each image in proportion to 1 / effective number of its class, Cui et al., Eq. (2).

    Epoch length N; small classes repeat, of large ones a random part is left out.

    Args:
        targets: Labels of the training images, (N,).
        beta: In [0, 1]: 0 is instance-balanced, 1 class-balanced. The paper uses 0.9 to 0.9999.
        options: ``seed, num_replicas, rank, num_samples, drop_last, num_classes``, see :class:`LongTailSampler`.

    Examples:
        >>> sampler = EffectiveNumberSampler([0, 0, 0, 1], beta=0.0)
        >>> sorted(sampler)
        [0, 1, 2, 3]
    """

    law_options = ('beta',)

    def __init__(self, targets: Any, *, beta: float = 0.9999, **options: Any) -> None:
        self.beta = check_range('beta', beta, 0, 1)
        super().__init__(targets, **options)

    def class_shares(self, epoch: int) -> Tensor:
        counts = self.class_counts.double()
        if self.beta in (0, 1):  # the limits of the formula: E_n = 1 and E_n = n
            share = counts if self.beta == 0 else torch.ones_like(counts)
        else:
            share = counts / -torch.expm1(counts * math.log(self.beta))  # 1 - beta is common to all classes
        return share / share.sum()

"""Several images of a class in a row, for losses that compare images of a batch.

Paper: K. Musgrave et al., "PyTorch Metric Learning", arXiv 2020, https://arxiv.org/abs/2008.09164
Implements: the library's ``MPerClassSampler``: m images of one class follow each other.
Source: written from its documentation.
Differs from the paper / official code: all images of a class come before any comes again, and every class comes once
in each C runs.
"""

from typing import Any

import torch
from torch import Tensor

from .._registry import register_sampler
from .._validate import check_whole
from ._base import CPU, LongTailSampler, shuffle_within


@register_sampler('m_per_class', paper='Musgrave et al., arXiv 2020', needs=('targets',))
class MPerClassSampler(LongTailSampler):
    """m images of one class after another. A batch of a multiple of m draws has m images of each of its classes.

    Each C runs of m draws, from the start of the epoch, have every class once. Under several processes the rule holds
    for the joint batch. An epoch has N draws, rounded down to a multiple of m. A class of fewer than m images repeats
    them.

    Args:
        targets: Labels of the training images, (N,).
        m: Images of a class in a row, >= 1; 1 is ``class_balanced``.
        options: ``seed, num_replicas, rank, num_samples, drop_last, num_classes``, see :class:`LongTailSampler`.

    Examples:
        >>> sampler = MPerClassSampler([0, 0, 0, 0, 1, 1], m=2)
        >>> targets = torch.tensor([0, 0, 0, 0, 1, 1])
        >>> sorted(targets[list(sampler)][:4].view(2, 2).tolist())
        [[0, 0], [1, 1]]
    """

    law_options = ('m',)

    def __init__(self, targets: Any, *, m: int = 4, **options: Any) -> None:
        self.m = check_whole('m', m, 1)
        super().__init__(targets, **options)

    def draws_per_epoch(self) -> int:
        return max(super().draws_per_epoch() // self.m * self.m, self.m)

    def class_shares(self, epoch: int) -> Tensor:
        return torch.full((len(self.class_counts),), 1 / len(self.class_counts), dtype=torch.float64, device=CPU)

    def _class_order(self, epoch: int, generator: torch.Generator) -> Tensor:
        num_classes = len(self.class_counts)
        runs = -(-self.num_samples // self.m)
        place = torch.arange(-(-runs // num_classes) * num_classes, device=CPU)
        classes = shuffle_within(place // num_classes, generator) % num_classes
        return classes.repeat_interleave(self.m)[:self.num_samples]

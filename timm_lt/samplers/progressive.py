"""Progressively balanced sampling.

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (2): in epoch t of T class c has share ``(1 - t / T) * n_c / N + (t / T) / C``.
Source: written from the paper.
Differs from the paper / official code: images of a class are cycled, not drawn with replacement. Epochs count from 0,
as the loops count them. Epoch 0 is plain shuffling, and only epoch T, after the last, would be class-balanced. The
official code divides by T - 1, so that the last epoch is class-balanced: ``variant='released'``.
"""

from typing import Any

import torch
from torch import Tensor

from .._registry import register_sampler
from .._validate import check_option, check_whole
from ._base import LongTailSampler


@register_sampler('progressive', paper='Kang et al., ICLR 2020', needs=('targets', 'num_epochs'))
class ProgressiveSampler(LongTailSampler):
    """From instance-balanced in the first epoch towards class-balanced in the last; needs ``set_epoch``.

    Kang et al., Eq. (2).

    Epoch length N. Epochs from ``num_epochs`` on are class-balanced, with ``variant='released'`` the last one too.

    Args:
        targets: Labels of the training images, (N,).
        num_epochs: T, epochs of the whole training, >= 1.
        variant: Share of balanced draws in epoch t: ``'paper'``: ``t / T``; ``'released'``: ``t / (T - 1)``.
        options: ``seed, num_replicas, rank, num_samples, drop_last, num_classes``, see :class:`LongTailSampler`.

    Examples:
        >>> sampler = ProgressiveSampler([0, 0, 0, 1], num_epochs=10)
        >>> sampler.set_epoch(5)
        >>> sampler.class_shares(5).tolist()
        [0.625, 0.375]
    """

    law_options = ('num_epochs', 'variant')
    variant = 'paper'  # of states that an earlier version saved

    def __init__(self, targets: Any, *, num_epochs: int, variant: str = 'paper', **options: Any) -> None:
        self.num_epochs = check_whole('num_epochs', num_epochs, 1)
        self.variant = check_option('variant', variant, ('paper', 'released'))
        super().__init__(targets, **options)

    def class_shares(self, epoch: int) -> Tensor:
        counts = self.class_counts.double()
        last = self.num_epochs if self.variant == 'paper' else max(self.num_epochs - 1, 1)
        progress = min(epoch / last, 1.0)
        return torch.lerp(counts / counts.sum(), torch.full_like(counts, 1 / len(counts)), progress)

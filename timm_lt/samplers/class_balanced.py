"""Class-balanced (class-aware) sampling.

Papers: L. Shen et al., "Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks", ECCV 2016,
https://arxiv.org/abs/1512.05830, section on class-aware sampling;
B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Kang et al. Eq. (1) with q = 0: every class has share 1 / C. Draws follow Shen et al.: from a list of
classes and one list of images per class. Each list is shuffled and gone through before it starts again.
Source: written from the papers.
Differs from the paper / official code: new lists start in each epoch, so an epoch depends on (seed, epoch) only. The
class-aware sampler of released long-tail code draws ``n_max * C`` images in an epoch: ``epoch_length='oversampled'``.
"""

from typing import Any

import torch
from torch import Tensor

from .._registry import register_sampler
from .._validate import check_option
from ._base import CPU, LongTailSampler, shuffle_within


@register_sampler('class_balanced', paper='Shen et al., ECCV 2016', needs=('targets',))
class ClassBalancedSampler(LongTailSampler):
    """Every class equally often: each C draws in a row, from the start of the epoch, have every class once.

    Kang et al., Eq. (1) with q = 0.

    Within an epoch every image of a class is drawn before any comes again. The next epoch starts new random rounds.

    Args:
        targets: Labels of the training images, (N,).
        epoch_length: Draws of an epoch. ``'images'``: N, so that most images of large classes are left out.
            ``'oversampled'``: ``n_max * C``, so that every image comes at least once, as in released code.
        options: ``seed, num_replicas, rank, num_samples, drop_last, num_classes``, see :class:`LongTailSampler`;
            ``num_samples`` overrides ``epoch_length``.

    Examples:
        >>> sampler = ClassBalancedSampler([0, 0, 0, 1], num_samples=6)
        >>> sorted(sampler)
        [0, 1, 2, 3, 3, 3]
    """

    def __init__(self, targets: Any, *, epoch_length: str = 'images', **options: Any) -> None:
        self.epoch_length = check_option('epoch_length', epoch_length, ('images', 'oversampled'))
        super().__init__(targets, **options)

    def draws_per_epoch(self) -> int:
        if self.epoch_length == 'images':
            return super().draws_per_epoch()
        return int(self.class_counts.max()) * len(self.class_counts)

    def class_shares(self, epoch: int) -> Tensor:
        return torch.full((len(self.class_counts),), 1 / len(self.class_counts), dtype=torch.float64, device=CPU)

    def _class_order(self, epoch: int, generator: torch.Generator) -> Tensor:
        num_classes = len(self.class_counts)
        rounds = -(-self.num_samples // num_classes)
        place = torch.arange(rounds * num_classes, device=CPU)
        return shuffle_within(place // num_classes, generator)[:self.num_samples] % num_classes

"""Class-balanced (class-aware) sampling.

Papers: L. Shen et al., "Relay Backpropagation for Effective Learning of Deep Convolutional Neural Networks", ECCV 2016,
https://arxiv.org/abs/1512.05830, section on class-aware sampling;
B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Kang et al. Eq. (1) with q = 0: every class has share 1 / C; drawn as Shen et al. do, from a list of classes
and one list of images per class, each shuffled and gone through before it starts again.
Source: written from the papers.
Differs from the paper / official code: new lists start in each epoch, so an epoch depends on (seed, epoch) only.
"""

import torch
from torch import Tensor

from .._registry import register_sampler
from ._base import CPU, LongTailSampler, shuffle_within


@register_sampler('class_balanced', paper='Shen et al., ECCV 2016', needs=('targets',))
class ClassBalancedSampler(LongTailSampler):
    """Every class equally often: each C draws in a row, from the start of the epoch, have every class once.

    Kang et al., Eq. (1) with q = 0.

    Epoch length N. Within an epoch every image of a class is drawn before any comes again; the next epoch starts new
    random rounds.

    Args:
        targets, seed, num_replicas, rank, num_samples, drop_last, num_classes: See :class:`LongTailSampler`.

    Examples:
        >>> sampler = ClassBalancedSampler([0, 0, 0, 1], num_samples=6)
        >>> sorted(sampler)
        [0, 1, 2, 3, 3, 3]
    """

    def class_shares(self, epoch: int) -> Tensor:
        return torch.full((len(self.class_counts),), 1 / len(self.class_counts), dtype=torch.float64, device=CPU)

    def _class_order(self, epoch: int, generator: torch.Generator) -> Tensor:
        num_classes = len(self.class_counts)
        rounds = -(-self.num_samples // num_classes)
        place = torch.arange(rounds * num_classes, device=CPU)
        return shuffle_within(place // num_classes, generator)[:self.num_samples] % num_classes

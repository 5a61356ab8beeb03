"""Instance-balanced sampling: plain shuffling.

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (1) with q = 1: class c has share ``pi_c = n_c / N``.
Source: written from the paper.
Differs from the paper / official code: no.
"""

import torch
from torch import Tensor

from .._registry import register_sampler
from ._base import CPU, LongTailSampler, shuffle_within


@register_sampler('instance_balanced', paper='Kang et al., ICLR 2020', needs=('targets',))
class InstanceBalancedSampler(LongTailSampler):
    """Every image once, in a random order, Kang et al., Eq. (1) with q = 1.

    Epoch length N. With ``num_samples`` above N a second random round follows when the first is used up. A label
    without an image is allowed unless ``num_classes`` is given.

    Args:
        targets, seed, num_replicas, rank, num_samples, drop_last, num_classes: See :class:`LongTailSampler`.

    Examples:
        >>> sampler = InstanceBalancedSampler([0, 0, 0, 1])
        >>> sorted(sampler)
        [0, 1, 2, 3]
    """

    needs_every_class = False

    def class_shares(self, epoch: int) -> Tensor:
        return self.class_counts.double() / self.class_counts.sum()

    def _draw(self, epoch: int, generator: torch.Generator) -> Tensor:
        # classes play no part: rounds over all images, not over each class
        num_images = len(self.images_by_class)
        rounds = -(-self.num_samples // num_images)
        place = torch.arange(rounds * num_images, device=CPU)
        return shuffle_within(place // num_images, generator)[:self.num_samples] % num_images

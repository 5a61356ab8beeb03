"""Balanced-MixUp: mixup of the plain and the class-balanced order of the images.

Paper: A. Galdran et al., "Balanced-MixUp for Highly Imbalanced Medical Image Classification", MICCAI 2021,
https://arxiv.org/abs/2109.09850
Implements: mixup of an instance-balanced with a class-balanced batch, weight from Beta(alpha, 1).
Source: written from the paper.
Differs from the paper / official code: no.
"""

import numpy as np
from torch import Tensor

from ..._registry import register_mixing
from ..._types import ClassCounts
from ._base import BatchMixing


@register_mixing('balanced_mixup', paper='Galdran et al., MICCAI 2021', needs=('class_counts',))
class BalancedMixup(BatchMixing):
    """Mixup of each image with one that a class-balanced sampler draws.

    A batch has one weight ``lam`` of the class-balanced images. Every step reads a second batch.

    Args:
        class_counts, prob, start_epoch: See :class:`BatchMixing`.
        alpha: Of the distribution Beta(alpha, 1) of ``lam``, > 0; its mean is ``alpha / (1 + alpha)``. The paper
            chooses among 0.1, 0.2 and 0.3.
        partners: Sampler of the second images.
    """

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            prob: float = 1.0,
            start_epoch: int = 0,
            alpha: float = 0.2,
            partners: str = 'class_balanced',
    ) -> None:
        super().__init__(class_counts, alpha=alpha, prob=prob, start_epoch=start_epoch)
        self.partners = partners

    def mix(
            self, images: Tensor, label: Tensor, partner_images: Tensor, partner_label: Tensor,
    ) -> tuple[Tensor, float]:
        lam = np.random.beta(self.alpha, 1)
        return (1 - lam) * images + lam * partner_images, 1 - lam

"""CMO: context-rich minority oversampling.

Paper: S. Park et al., "The Majority Can Help The Minority: Context-rich Minority Oversampling for Long-tailed
Classification", CVPR 2022, https://arxiv.org/abs/2112.00412
Implements: Algorithm 1: CutMix with the background of the plain sampler and the foreground of a minority sampler.
Source: written from the paper.
Differs from the paper / official code: images of a class are cycled, not drawn with replacement.
"""

import numpy as np
from timm.data.mixup import rand_bbox
from torch import Tensor

from ..._registry import register_mixing
from ..._types import ClassCounts
from ._base import BatchMixing


@register_mixing('cmo', paper='Park et al., CVPR 2022', needs=('class_counts',))
class CMO(BatchMixing):
    """CutMix that pastes a box of a rare image onto an image of the plain sampler.

    A batch has one box, whose area has the share ``1 - lam``. Every step reads a second batch.

    Args:
        class_counts, start_epoch: See :class:`BatchMixing`. The official code begins in the fourth epoch.
        prob: Probability that a batch is mixed, in [0, 1]. The official code uses 0.5.
        alpha: Of the Beta distribution of ``lam``, > 0. The paper uses 1.
        partners: Sampler of the foreground. 'class_balanced' is that of the official code, where each image has the
            weight ``1 / n_c``. 'reverse' draws classes by the inverse of their size.
    """

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            prob: float = 0.5,
            start_epoch: int = 3,
            alpha: float = 1.0,
            partners: str = 'class_balanced',
    ) -> None:
        super().__init__(class_counts, alpha=alpha, prob=prob, start_epoch=start_epoch)
        self.partners = partners

    def mix(
            self, images: Tensor, label: Tensor, partner_images: Tensor, partner_label: Tensor,
    ) -> tuple[Tensor, float]:
        height, width = images.shape[-2:]
        top, bottom, left, right = rand_bbox(images.shape, np.random.beta(self.alpha, self.alpha))
        images = images.clone()
        images[..., top:bottom, left:right] = partner_images[..., top:bottom, left:right]
        return images, 1 - float((bottom - top) * (right - left)) / (height * width)

"""UniMix: mixup whose pairs and weights favour rare classes.

Paper: Z. Xu et al., "Towards Calibrated Model for Long-Tailed Visual Recognition from Prior Perspective", NeurIPS 2021,
https://arxiv.org/abs/2111.03874
Implements: the UniMix factor and the UniMix sampler.
Source: written from the paper.
Differs from the paper / official code: the paper's values of alpha and power were not read. Copies of the code draw
partners with the power -0.5.
"""

import numpy as np
import torch
from torch import Tensor

from ..._registry import register_mixing
from ..._types import ClassCounts
from ..._validate import check_range
from ._base import BatchMixing


@register_mixing('unimix', paper='Xu et al., NeurIPS 2021', needs=('class_counts',))
class UniMix(BatchMixing):
    """Mixup with partners drawn by class size, and weights that lean towards the smaller class of each pair.

    The partner comes from the batch: image j with the weight ``n_j ** power``, with replacement. The weight of an image
    i is ``n_j / (n_i + n_j) + b`` modulo 1. Each pair draws its own ``b`` from Beta(alpha, alpha).

    Args:
        class_counts, prob, start_epoch: See :class:`BatchMixing`.
        alpha: Of the Beta distribution, > 0. Below 1 the weight is near ``n_j / (n_i + n_j)``.
        power: Exponent of the class size in the weight of a partner; 0 draws all images alike.
    """

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            prob: float = 1.0,
            start_epoch: int = 0,
            alpha: float = 0.8,
            power: float = -1.0,
    ) -> None:
        super().__init__(class_counts, alpha=alpha, prob=prob, start_epoch=start_epoch)
        self.power = check_range('power', power)

    def pair(self, label: Tensor) -> np.ndarray:
        weight = (self.class_counts[label] ** self.power).cpu().numpy()
        return np.random.choice(len(label), len(label), p=weight / weight.sum())

    def mix(
            self, images: Tensor, label: Tensor, partner_images: Tensor, partner_label: Tensor,
    ) -> tuple[Tensor, Tensor]:
        own, other = self.class_counts[label], self.class_counts[partner_label]
        draws = torch.from_numpy(np.random.beta(self.alpha, self.alpha, len(label))).to(own)
        share = (other / (own + other) + draws) % 1
        weight = share.to(images.dtype).view(-1, *[1] * (images.ndim - 1))
        return weight * images + (1 - weight) * partner_images, share

"""Remix: mixup whose labels lean towards the smaller class.

Paper: H.-P. Chou et al., "Remix: Rebalanced Mixup", ECCV Workshops 2020, https://arxiv.org/abs/2007.03943
Implements: the relaxed mixing factor of the labels, Eq. (8) of the paper.
Source: written from the paper.
Differs from the paper / official code: no.
"""

import numpy as np
import torch
from torch import Tensor

from ..._registry import register_mixing
from ..._types import ClassCounts
from ..._validate import check_range
from ._base import BatchMixing


@register_mixing('remix', paper='Chou et al., ECCV Workshops 2020', needs=('class_counts',))
class Remix(BatchMixing):
    """Mixup in which the label is that of the smaller class alone, where the sizes differ enough.

    Images are mixed with one weight ``lam`` for a batch. The label of a pair is its smaller class alone if two
    conditions hold. The larger class has at least ``kappa`` times the images of the smaller. It fills less than ``tau``
    of the image.

    Args:
        class_counts, prob, start_epoch: See :class:`BatchMixing`.
        alpha: Of the Beta distribution of ``lam``, > 0. The paper uses 1.
        kappa: Ratio of class sizes, >= 1. The paper uses 3.
        tau: Share of the image, in [0, 1]; 0 is mixup. The paper uses 0.5.
    """

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            prob: float = 1.0,
            start_epoch: int = 0,
            alpha: float = 1.0,
            kappa: float = 3.0,
            tau: float = 0.5,
    ) -> None:
        super().__init__(class_counts, alpha=alpha, prob=prob, start_epoch=start_epoch)
        self.kappa = check_range('kappa', kappa, 1)
        self.tau = check_range('tau', tau, 0, 1)

    def mix(
            self, images: Tensor, label: Tensor, partner_images: Tensor, partner_label: Tensor,
    ) -> tuple[Tensor, Tensor]:
        lam = np.random.beta(self.alpha, self.alpha)
        ratio = self.class_counts[label] / self.class_counts[partner_label]
        share = torch.full_like(ratio, lam)
        if lam < self.tau:
            share[ratio >= self.kappa] = 0
        if 1 - lam < self.tau:
            share[ratio <= 1 / self.kappa] = 1
        return lam * images + (1 - lam) * partner_images, share

"""Repeat-factor sampling.

Paper: A. Gupta et al., "LVIS: A Dataset for Large Vocabulary Instance Segmentation", CVPR 2019,
https://arxiv.org/abs/1908.03195, Appendix B (after Mahajan et al., ECCV 2018)
Implements: ``r_c = max(1, sqrt(t / pi_c))``; an image of class c comes r_c times in an epoch, on average.
Source: written from the paper.
Differs from the paper / official code: an image has one class here. The published code rounds r_c up or down for each
image on its own, so that epochs differ in length. Here the images of a class share the rounding, and each comes
floor(r_c) or ceil(r_c) times. Every epoch has the length ``N + ceil(sum_c n_c (r_c - 1))``, which scales repetitions up
by less than one draw in all.
"""

import math
from typing import Any

import torch
from torch import Tensor

from .._registry import register_sampler
from .._validate import check_range
from ._base import LongTailSampler, random_quotas


@register_sampler('repeat_factor', paper='Gupta et al., CVPR 2019', needs=('targets',))
class RepeatFactorSampler(LongTailSampler):
    """Every image at least once, images of classes rarer than a threshold more often, Gupta et al., Appendix B.

    Epoch length ``sum_c n_c r_c``, rounded up: longer than N where something repeats. With another ``num_samples`` the
    classes keep the proportions of ``n_c r_c``, and images may be left out.

    Args:
        targets: Labels of the training images, (N,).
        threshold: t, a share of the images, in (0, 1]; classes with ``pi_c >= t`` do not repeat. The paper uses 0.001,
            for some 1000 classes; 1 / C repeats the classes below average size.
        options: ``seed, num_replicas, rank, num_samples, drop_last, num_classes``, see :class:`LongTailSampler`.

    Examples:
        >>> sampler = RepeatFactorSampler([0] * 12 + [1] * 4, threshold=1.0)
        >>> [round(r, 3) for r in sampler.repeat_factors.tolist()]
        [1.155, 2.0]
    """

    law_options = ('threshold',)

    def __init__(self, targets: Any, *, threshold: float = 0.001, **options: Any) -> None:
        self.threshold = check_range('threshold', threshold, 0, 1, low_open=True)
        super().__init__(targets, **options)

    @property
    def repeat_factors(self) -> Tensor:
        """r_c, (C,), float64, each >= 1."""
        counts = self.class_counts.double()
        return (self.threshold * counts.sum() / counts).sqrt().clamp(min=1)

    def class_shares(self, epoch: int) -> Tensor:
        share = self.class_counts * self.repeat_factors
        return share / share.sum()

    def draws_per_epoch(self) -> int:
        return int(self.class_counts.sum()) + math.ceil(round(float(self._repetitions().sum()), 6))

    def _repetitions(self) -> Tensor:
        return self.class_counts * (self.repeat_factors - 1)

    def _quotas(self, epoch: int, generator: torch.Generator) -> Tensor:
        if self.num_samples != self.draws_per_epoch():
            return super()._quotas(epoch, generator)
        # every image once, and only the repetitions are rounded: a class that does not repeat never does
        extra = self.num_samples - int(self.class_counts.sum())
        return self.class_counts + random_quotas(self._repetitions(), extra, generator) if extra else self.class_counts

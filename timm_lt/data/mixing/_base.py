"""Base of the mixings: pairs of images become one image with a soft target."""

import numpy as np
import torch
from timm.data.mixup import one_hot
from torch import Tensor

from ..._types import ClassCounts
from ..._validate import check_class_counts, check_range, check_whole


class BatchMixing:
    """Base of the mixings of a batch.

    A subclass writes :meth:`mix` and, unless it declares :attr:`partners`, may write :meth:`pair`. All random numbers
    come from numpy's global generator, as in timm's ``Mixup``. The training loop seeds it by epoch, step and process.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        alpha: Of the Beta distribution that the weights of a pair come from, > 0.
        prob: Probability that a batch is mixed, in [0, 1].
        start_epoch: First epoch in which batches are mixed, counted from 0.

    Attributes:
        partners: Sampler that draws the second image of each pair; None: the batch itself has them.
        smoothing: Label smoothing of the targets, in [0, 1).
        mixup_enabled: False: the images stay, the targets are one-hot; ``--mixup-off-epoch`` sets it.
    """

    partners: str | None = None

    def __init__(
            self, class_counts: ClassCounts, *, alpha: float = 1.0, prob: float = 1.0, start_epoch: int = 0,
    ) -> None:
        self.class_counts = check_class_counts(class_counts, who=type(self).__name__).double()
        self.alpha = check_range('alpha', alpha, 0, low_open=True)
        self.prob = check_range('prob', prob, 0, 1)
        self.start_epoch = check_whole('start_epoch', start_epoch, 0)
        self.smoothing = 0.0
        self.mixup_enabled = True
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Tell the mixing the epoch that begins now."""
        self.epoch = epoch

    def __call__(
            self,
            images: Tensor,
            label: Tensor,
            partner_images: Tensor | None = None,
            partner_label: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Mix a batch.

        Args:
            images: (B, ch, H, W), floating point.
            label: Class indices, (B,).
            partner_images: The second image of each pair, like ``images``; needed where :attr:`partners` is not None.
            partner_label: Their class indices, (B,).

        Returns:
            Mixed images, and their soft targets (B, C), float32.
        """
        if self.class_counts.device != label.device:
            self.class_counts = self.class_counts.to(label.device)
        mixed = np.random.rand() < self.prob
        if not (mixed and self.mixup_enabled and self.epoch >= self.start_epoch):
            return images, self._soft(label)
        if partner_images is None or partner_label is None:
            if self.partners is not None:
                raise ValueError(
                    f'{type(self).__name__} needs the partner of each image, drawn by the sampler {self.partners!r}; '
                    f'see timm_lt.data.PairedLoader')
            pairs = torch.from_numpy(self.pair(label)).to(label.device)
            partner_images, partner_label = images[pairs], label[pairs]
        images, share = self.mix(images, label, partner_images, partner_label)
        share = torch.as_tensor(share, dtype=torch.float32, device=label.device).reshape(-1, 1)
        return images, share * self._soft(label) + (1 - share) * self._soft(partner_label)

    def pair(self, label: Tensor) -> np.ndarray:
        """Place in the batch of the partner of each image, (B,), int64: a random order."""
        return np.random.permutation(len(label))

    def mix(
            self, images: Tensor, label: Tensor, partner_images: Tensor, partner_label: Tensor,
    ) -> tuple[Tensor, Tensor | float]:
        """Mixed images, and the share of ``label`` in each target, (B,) or one number; arguments as of the call."""
        raise TypeError(f'{type(self).__name__} must define mix(images, label, partner_images, partner_label)')

    def _soft(self, label: Tensor) -> Tensor:
        num_classes = len(self.class_counts)
        off = self.smoothing / num_classes
        return one_hot(label, num_classes, on_value=1 - self.smoothing + off, off_value=off)

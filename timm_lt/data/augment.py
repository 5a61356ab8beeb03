"""Augmentation and normalisation of whole batches, on the device of the images.

Papers: C. Lee et al., "Deeply-Supervised Nets", AISTATS 2015 (pad, random crop, flip); T. DeVries, G. Taylor, "Improved
Regularization of Convolutional Neural Networks with Cutout", 2017, https://arxiv.org/abs/1708.04552; Z. Zhong et al.,
"Random Erasing Data Augmentation", AAAI 2020, https://arxiv.org/abs/1708.04896
Implements: the same laws as torchvision's and timm's transforms of one image (crop offsets uniform, Cutout square
around a uniform pixel, cut at the border; erased box of 2% to 33% of the area, aspect 0.3 to 1/0.3, ten attempts).
Source: written from the papers.
Differs from the papers / official code: every random number of a step comes from one generator seeded by
(seed, epoch, step), drawn for the global batch on the CPU; a process takes its rows. So two processes of batch B see
what one process of batch 2B sees, a resumed run sees what an uninterrupted one sees, and a GPU what a CPU sees.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .._validate import check_option, check_range

__all__ = ['BatchAugment']

ERASE_MODES = ('const', 'rand', 'pixel')
ERASE_AREA = (0.02, 1 / 3)
ERASE_LOG_ASPECT = math.log(1 / 0.3)
ERASE_ATTEMPTS = 10


class BatchAugment:
    """Random crop, flips, Cutout and random erasing of uint8 batches, and their normalisation.

    Args:
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        padding: Black pixels added on each side before a random crop of the old size; 0 off.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        cutout: Side of the square that is set to the mean, in pixels; 0 off.
        reprob: Probability that a box of an image is erased.
        remode: 'const' (mean), 'rand' (a normal colour) or 'pixel' (normal noise).
        seed: Decides everything, with epoch and step.

    Images of several views, (B, V, C, H, W), are normalised; Cutout and erasing touch the first view only, crops and
    flips are left to the transform that made the views.

    Raises:
        ValueError: If an argument is out of range.
    """

    def __init__(
            self,
            mean: Sequence[float],
            std: Sequence[float],
            *,
            padding: int = 0,
            hflip: float = 0.,
            vflip: float = 0.,
            cutout: int = 0,
            reprob: float = 0.,
            remode: str = 'const',
            seed: int = 0,
    ) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f'mean and std need one entry per channel, std > 0, got {tuple(mean)} and {tuple(std)}')
        self.padding = int(check_range('padding', padding, 0))
        self.hflip = check_range('hflip', hflip, 0, 1)
        self.vflip = check_range('vflip', vflip, 0, 1)
        self.cutout = int(check_range('cutout', cutout, 0))
        self.reprob = check_range('reprob', reprob, 0, 1)
        self.remode = check_option('remode', remode, ERASE_MODES)
        self.seed = seed
        # (x / 255 - mean) / std as one product and one sum
        self._scale = torch.tensor([1 / (255 * s) for s in std]).view(-1, 1, 1)
        self._shift = torch.tensor([-m / s for m, s in zip(mean, std)]).view(-1, 1, 1)

    def __call__(
            self,
            images: Tensor,
            epoch: int,
            step: int,
            size: int | None = None,
            rows: slice | None = None,
    ) -> Tensor:
        """Augment and normalise this process's part of the batch of a step.

        Args:
            images: (B, C, H, W) or (B, V, C, H, W), uint8, any device.
            epoch: Epoch.
            step: Step within the epoch.
            size: Images of the global batch; None: B.
            rows: Places of ``images`` in the global batch; None: all.

        Returns:
            float32, of the shape of ``images``.
        """
        size = len(images) if size is None else size
        rows = slice(None) if rows is None else rows
        generator = self._generator(epoch, step)
        views = images.ndim == 5
        if not views:
            images = self._move(images, generator, size, rows)
        images = self.normalize(images)
        self._erase(images[:, 0] if views else images, generator, size, rows)
        return images

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 in 0..255 to float32, without augmentation."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale).add_(self._shift)

    def _generator(self, epoch: int, step: int) -> torch.Generator | None:
        if not (self.padding or self.hflip or self.vflip or self.cutout or self.reprob):
            return None
        key = np.random.SeedSequence((self.seed, epoch, step)).generate_state(1, np.uint64)
        return torch.Generator().manual_seed(int(key[0]))

    def _move(self, images: Tensor, generator: torch.Generator | None, size: int, rows: slice) -> Tensor:
        device = images.device
        if self.padding:
            offsets = torch.randint(0, 2 * self.padding + 1, (2, size), generator=generator)[:, rows].to(device)
            images = _crop(images, self.padding, offsets[0], offsets[1])
        for probability, axis in ((self.hflip, 3), (self.vflip, 2)):
            if probability:
                flip = (torch.rand(size, generator=generator) < probability)[rows].to(device)
                images = torch.where(flip[:, None, None, None], images.flip(axis), images)
        return images

    def _erase(self, images: Tensor, generator: torch.Generator | None, size: int, rows: slice) -> None:
        """Cutout and random erasing of normalised images, in place; 0 is the mean."""
        device, (_, channels, height, width) = images.device, images.shape
        if self.cutout:
            y = torch.randint(0, height, (size,), generator=generator)[rows]
            x = torch.randint(0, width, (size,), generator=generator)[rows]
            top, left = y - self.cutout // 2, x - self.cutout // 2
            images.masked_fill_(_boxes(top, left, self.cutout, self.cutout, height, width, device), 0)
        if self.reprob:
            top, left, h, w = (v[rows] for v in self._draw_boxes(generator, size, height, width))
            box = _boxes(top, left, h, w, height, width, device)
            if self.remode == 'const':
                images.masked_fill_(box, 0)
            else:
                shape = (size, channels, 1, 1) if self.remode == 'rand' else (size, channels, height, width)
                noise = torch.randn(shape, generator=generator)[rows].to(device)
                images.copy_(torch.where(box, noise, images))

    def _draw_boxes(self, generator: torch.Generator | None, size: int, height: int, width: int) -> tuple[Tensor, ...]:
        """Top, left, height and width of a box per image of the global batch; height 0 where nothing is erased."""
        draws = torch.rand((ERASE_ATTEMPTS, 4, size), generator=generator)
        erased = torch.rand(size, generator=generator) < self.reprob
        low, high = ERASE_AREA
        area = (low + (high - low) * draws[:, 0]) * height * width
        aspect = torch.exp((2 * draws[:, 1] - 1) * ERASE_LOG_ASPECT)
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        # the first attempt whose box fits
        fits = (h < height) & (w < width)
        first = fits.long().argmax(0, keepdim=True)
        h, w, u, v = (d.gather(0, first)[0] for d in (h, w, draws[:, 2], draws[:, 3]))
        h = torch.where(erased & fits.any(0), h, 0)
        return (u * (height - h + 1)).long(), (v * (width - w + 1)).long(), h, w


def _crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Windows of the old size from the padded images, one offset per image."""
    height, width = images.shape[-2:]
    padded = F.pad(images, (padding,) * 4)
    windows = padded.unfold(2, height, 1).unfold(3, width, 1)  # a view, (B, C, 2p + 1, 2p + 1, H, W)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def _boxes(
        top: Tensor,
        left: Tensor,
        h: Tensor | int,
        w: Tensor | int,
        height: int,
        width: int,
        device: torch.device,
) -> Tensor:
    """Masks (B, 1, H, W) of one box per image, cut at the border."""
    rows, columns = torch.arange(height), torch.arange(width)
    h, w = (torch.as_tensor(v).reshape(-1, 1) for v in (h, w))
    inside_rows = (rows >= top[:, None]) & (rows < top[:, None] + h)
    inside_columns = (columns >= left[:, None]) & (columns < left[:, None] + w)
    return inside_rows.to(device)[:, None, :, None] & inside_columns.to(device)[:, None, None, :]

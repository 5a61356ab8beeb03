"""Crops and flips of whole batches.

Papers: C. Lee et al., "Deeply-Supervised Nets", AISTATS 2015 (pad, random crop, flip); C. Szegedy et al., "Going
Deeper with Convolutions", CVPR 2015 (random resized crop).
Implements: the laws of torchvision's ``RandomCrop`` and timm's ``RandomResizedCropAndInterpolation``, then the flips.
Source: written from the papers.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..._validate import check_option, check_range
from .draws import Draws
from .geometry import window
from .operations import chunks
from .resample import FILTERS, resize_weights, weighted_sums

ATTEMPTS = 10


class _Flips:
    def __init__(self, hflip: float, vflip: float) -> None:
        self.hflip = check_range('hflip', hflip, 0, 1)
        self.vflip = check_range('vflip', vflip, 0, 1)

    def mirrored(self, draws: Draws, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images to be mirrored top to bottom and left to right, bool, on the device of the images."""
        flags = {}
        for name in ('hflip', 'vflip'):
            probability = getattr(self, name)
            flags[name] = draws.uniform() < probability if probability else torch.zeros(len(images), dtype=torch.bool)
        return flags['vflip'].to(images.device), flags['hflip'].to(images.device)


class PaddedCrop(_Flips):
    """Black pixels around, a random window of the old size, flips.

    Args:
        padding: Black pixels on each side; 0: no crop.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
    """

    def __init__(self, padding: int, hflip: float = 0., vflip: float = 0.) -> None:
        super().__init__(hflip, vflip)
        self.padding = int(check_range('padding', padding, 0))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        if not (self.padding or self.hflip or self.vflip):
            return images
        offsets = torch.zeros(2, len(images), dtype=torch.int64)
        if self.padding:
            offsets = draws.integers(2 * self.padding + 1, 2) - self.padding
        top, left = offsets.to(images.device)
        return window(images, top, left, *self.mirrored(draws, images))


class ResizedCrop(_Flips):
    """A window of random area and aspect ratio, resized; flips.

    Args:
        size: Height and width of the result.
        scale: Smallest and largest share of the area.
        ratio: Smallest and largest width / height.
        interpolation: 'bilinear' or 'bicubic'.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
    """

    def __init__(
            self,
            size: Sequence[int],
            scale: Sequence[float],
            ratio: Sequence[float],
            interpolation: str = 'bilinear',
            hflip: float = 0.,
            vflip: float = 0.,
    ) -> None:
        super().__init__(hflip, vflip)
        self.size = tuple(size)
        self.scale = tuple(scale)
        self.ratio = tuple(ratio)
        self.interpolation = check_option('interpolation', interpolation, tuple(FILTERS))

    def __call__(self, images: Tensor, draws: Draws) -> Tensor:
        height, width = images.shape[-2:]
        boxes = self.draw_boxes(draws, height, width).to(images.device)
        mirror_y, mirror_x = self.mirrored(draws, images)
        result = []
        for members in chunks(torch.arange(len(images)), max(height * width, self.size[0] * self.size[1])):
            chunk = slice(int(members[0]), int(members[-1]) + 1)
            top, left, h, w = boxes[:, chunk]
            rows = resize_weights(top, h, self.size[0], height, self.interpolation)
            columns = resize_weights(left, w, self.size[1], width, self.interpolation)
            rows = torch.where(mirror_y[chunk, None, None], rows.flip(1), rows)
            columns = torch.where(mirror_x[chunk, None, None], columns.flip(1), columns)
            result.append(weighted_sums(images[chunk], rows, columns, round_between=True))
        return torch.cat(result)

    def draw_boxes(self, draws: Draws, height: int, width: int) -> Tensor:
        """Top, left, height and width of the windows, (4, n), int64."""
        share, aspect, place_y, place_x = draws.uniform(4, ATTEMPTS).double()
        area = (self.scale[0] + (self.scale[1] - self.scale[0]) * share) * height * width
        low, high = (math.log(r) for r in self.ratio)
        aspect = torch.exp(low + (high - low) * aspect)
        w, h = ((area * a).sqrt().round().long().clamp_(min=1) for a in (aspect, 1 / aspect))
        fits = (h <= height) & (w <= width)
        first = fits.long().argmax(0, keepdim=True)  # the first attempt that fits
        h, w, place_y, place_x = (v.gather(0, first)[0] for v in (h, w, place_y, place_x))
        top, left = (place_y * (height - h + 1)).long(), (place_x * (width - w + 1)).long()
        return torch.where(fits.any(0), torch.stack([top, left, h, w]), self._central_box(height, width))

    def _central_box(self, height: int, width: int) -> Tensor:
        """The largest central window of an allowed ratio, where no attempt fits; (4, 1)."""
        h, w = height, width
        if width / height < self.ratio[0]:
            h = round(width / self.ratio[0])
        elif width / height > self.ratio[1]:
            w = round(height * self.ratio[1])
        return torch.tensor([(height - h) // 2, (width - w) // 2, h, w]).view(4, 1)

"""Augmentation and normalisation of whole batches, on the device of the images.

Papers: T. DeVries, G. Taylor, "Improved Regularization of Convolutional Neural Networks with Cutout", 2017,
https://arxiv.org/abs/1708.04552; Z. Zhong et al., "Random Erasing Data Augmentation", AAAI 2020,
https://arxiv.org/abs/1708.04896
Implements: the same laws as torchvision's and timm's transforms of one image. The Cutout square lies around a uniform
pixel and is cut at the border. The erased box has 2% to 33% of the area and an aspect of 0.3 to 1/0.3. It is drawn in
ten attempts.
Source: written from the papers.
Differs from the papers / official code: one generator, seeded by (seed, epoch, step), draws every random number of a
step. It draws for the global batch on the CPU, and a process takes its rows. Two processes of batch B therefore see the
images of one process of batch 2B. A resumed run sees the images of an uninterrupted run, and a GPU those of a CPU.
"""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._validate import check_option, check_range
from .crop import PaddedCrop
from .draws import Draws

__all__ = ['BatchAugment']

# uint8 images (n, C, H, W) and the random numbers of the step to images of the same kind
Step = Callable[[Tensor, Draws], Tensor]

ERASE_MODES = ('const', 'rand', 'pixel')
CUTOUT_FILLS = ('mean', 'black')
ERASE_AREA = (0.02, 1 / 3)
ERASE_LOG_ASPECT = math.log(1 / 0.3)
ERASE_ATTEMPTS = 10


class BatchAugment:
    """Crop, flips, further steps, Cutout and random erasing of uint8 batches, and their normalisation.

    Args:
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        padding: Black pixels added on each side before a random crop of the old size; 0 off.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        steps: What follows crop and flips, on uint8 images, e.g. an automatic augmentation.
        more_views: Steps of each further view of an image, from the image itself. With them the result has shape
            (B, V, C, H, W), the view of ``padding`` to ``steps`` first.
        cutout: Side of the square that is painted over, in pixels; 0 off.
        cutout_fill: Colour of the square: 'mean' or 'black'.
        reprob: Probability that a box of an image is erased.
        repeat_reprob: The same for an image that the epoch has drawn before; None: ``reprob``.
        remode: 'const' (mean), 'rand' (a normal colour) or 'pixel' (normal noise).
        seed: Decides everything, with epoch and step.

    Cutout and erasing touch the first view only. Images that are views already, (B, V, C, H, W), stay as their
    transform made them. They get no crop, flip or step.

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
            steps: Sequence[Step] = (),
            more_views: Sequence[Sequence[Step]] = (),
            cutout: int = 0,
            cutout_fill: str = 'mean',
            reprob: float = 0.,
            repeat_reprob: float | None = None,
            remode: str = 'const',
            seed: int = 0,
    ) -> None:
        if len(mean) != len(std) or min(std) <= 0:
            raise ValueError(f'mean and std need one entry per channel, std > 0, got {tuple(mean)} and {tuple(std)}')
        self.views: list[list[Step]] = [
            [PaddedCrop(padding, hflip, vflip), *steps], *(list(view) for view in more_views)]
        self.cutout = int(check_range('cutout', cutout, 0))
        self.cutout_fill = check_option('cutout_fill', cutout_fill, CUTOUT_FILLS)
        self.reprob = check_range('reprob', reprob, 0, 1)
        self.repeat_reprob = self.reprob if repeat_reprob is None else check_range('repeat_reprob', repeat_reprob, 0, 1)
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
            repeated: Tensor | None = None,
    ) -> Tensor:
        """Augment and normalise this process's part of the batch of a step.

        Args:
            images: (B, C, H, W) or (B, V, C, H, W), uint8, any device.
            epoch: Epoch.
            step: Step within the epoch.
            size: Images of the global batch; None: B.
            rows: Places of ``images`` in the global batch; None: all.
            repeated: Images that the epoch has drawn before, (B,), on the CPU; None: none.

        Returns:
            float32, (B, C, H, W), or (B, V, C, H, W) for several views.
        """
        draws = Draws(
            (self.seed, epoch, step), len(images) if size is None else size, slice(None) if rows is None else rows)
        if images.ndim == 4:
            images = self._make_views(images, draws)
        result = self.normalize(images)
        first = result[:, 0] if result.ndim == 5 else result
        if self.cutout:
            self._cut_out(first, draws)
        if self.reprob or self.repeat_reprob:
            self._erase(first, draws, repeated)
        return result

    def normalize(self, images: Tensor) -> Tensor:
        """uint8 in 0..255 to float32, without augmentation."""
        if self._scale.device != images.device:
            self._scale, self._shift = self._scale.to(images.device), self._shift.to(images.device)
        return (images * self._scale).add_(self._shift)

    def _make_views(self, images: Tensor, draws: Draws) -> Tensor:
        views = []
        for steps in self.views:
            view = images
            for step in steps:
                view = step(view, draws)
            views.append(view)
        return views[0] if len(views) == 1 else torch.stack(views, 1)

    def _cut_out(self, images: Tensor, draws: Draws) -> None:
        """Cutout of normalised images, in place; 0 is the mean."""
        height, width = images.shape[-2:]
        top, left = (draws.integers(length) - self.cutout // 2 for length in (height, width))
        box = _boxes(top, left, self.cutout, self.cutout, height, width, images.device)
        if self.cutout_fill == 'mean':
            images.masked_fill_(box, 0)
        else:
            images.copy_(torch.where(box, self._shift, images))

    def _erase(self, images: Tensor, draws: Draws, repeated: Tensor | None) -> None:
        """Random erasing of normalised images, in place; 0 is the mean."""
        channels, height, width = images.shape[1:]
        box = _boxes(*self._draw_boxes(draws, height, width, repeated), height, width, images.device)
        if self.remode == 'const':
            images.masked_fill_(box, 0)
        else:
            noise = draws.normal(channels, *((1, 1) if self.remode == 'rand' else (height, width)))
            images.copy_(torch.where(box, noise.to(images.device), images))

    def _draw_boxes(
            self, draws: Draws, height: int, width: int, repeated: Tensor | None,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Top, left, height and width of a box per image; height 0 where nothing is erased."""
        shares = draws.uniform(ERASE_ATTEMPTS, 4)
        again = torch.tensor(False) if repeated is None else repeated
        erased = draws.uniform() < torch.where(again, self.repeat_reprob, self.reprob)
        low, high = ERASE_AREA
        area = (low + (high - low) * shares[:, 0]) * height * width
        aspect = torch.exp((2 * shares[:, 1] - 1) * ERASE_LOG_ASPECT)
        h, w = (area * aspect).sqrt().round().long(), (area / aspect).sqrt().round().long()
        # the first attempt whose box fits
        fits = (h < height) & (w < width)
        first = fits.long().argmax(0, keepdim=True)
        h, w, u, v = (d.gather(0, first)[0] for d in (h, w, shares[:, 2], shares[:, 3]))
        h = torch.where(erased & fits.any(0), h, 0)
        return (u * (height - h + 1)).long(), (v * (width - w + 1)).long(), h, w


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

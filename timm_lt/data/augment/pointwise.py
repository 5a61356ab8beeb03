"""Operations that map grey level to grey level, with one look-up table per image and channel and one gather.

Implements: Pillow's ``ImageOps`` (invert, posterize, solarize, autocontrast, equalize) and ``ImageEnhance``
(brightness, contrast), bit for bit.
Source: written from Pillow's documented formulas.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from .colour import blend, grey_levels

# images (n, C, H, W) uint8, arguments (n,) float64 on the device of the images
# -> grey level of each grey level, (n, C or 1, 256), any number type, in 0..255
Table = Callable[[Tensor, Tensor], Tensor]

LEVELS = 256


def map_levels(images: Tensor, table: Tensor) -> Tensor:
    """Replace each grey level by its entry in the table of its image and channel.

    Args:
        images: (n, C, H, W), uint8.
        table: (n, C or 1, 256), uint8.
    """
    n, channels = images.shape[:2]
    table = table.expand(n, channels, LEVELS).reshape(n * channels, LEVELS)
    return table.gather(1, images.reshape(n * channels, -1).long()).view(images.shape)


def _levels(images: Tensor) -> Tensor:
    return torch.arange(LEVELS, device=images.device).view(1, 1, LEVELS)


def _column(arguments: Tensor) -> Tensor:
    return arguments.view(-1, 1, 1)


def invert(images: Tensor, arguments: Tensor) -> Tensor:
    return (LEVELS - 1 - _levels(images)).expand(len(images), -1, -1)


def posterize(images: Tensor, arguments: Tensor) -> Tensor:
    """Keep the highest bits; the argument is their number, 0 to 8."""
    step = 2 ** (8 - _column(arguments).long())
    return _levels(images).div(step, rounding_mode='floor') * step


def solarize(images: Tensor, arguments: Tensor) -> Tensor:
    """Invert the levels from the argument on."""
    levels = _levels(images)
    return torch.where(levels < _column(arguments), levels, LEVELS - 1 - levels)


def solarize_add(images: Tensor, arguments: Tensor) -> Tensor:
    """Add the argument to the levels below 128."""
    levels = _levels(images)
    return torch.where(levels < 128, (levels + _column(arguments).long()).clamp(max=LEVELS - 1), levels)


def brightness(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with black; the argument is the weight of the image."""
    return blend(torch.zeros(1, device=images.device), _levels(images).float(), _column(arguments))


def contrast(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the mean grey level of the image; the argument is the weight of the image."""
    grey = grey_levels(images).flatten(1)
    pixels = grey.shape[1]
    mean = (2 * grey.sum(1, dtype=torch.int64) + pixels) // (2 * pixels)
    return blend(mean.view(-1, 1, 1).float(), _levels(images).float(), _column(arguments))


def autocontrast(images: Tensor, arguments: Tensor) -> Tensor:
    """Stretch the levels of each channel to 0..255."""
    pixels = images.flatten(2)
    low, high = (v.unsqueeze(2).double() for v in (pixels.amin(2), pixels.amax(2)))
    scale = torch.full_like(low, LEVELS - 1) / (high - low).clamp(min=1)  # a number / tensor rounds twice
    stretched = (_levels(images) * scale - low * scale).clamp_(0, LEVELS - 1)
    return torch.where(high > low, stretched, _levels(images).double())


def equalize(images: Tensor, arguments: Tensor) -> Tensor:
    """Make the levels of each channel occur equally often."""
    pixels = images.flatten(2).long()
    counts = torch.zeros(*pixels.shape[:2], LEVELS, dtype=torch.int32, device=images.device)
    counts.scatter_add_(2, pixels, torch.ones((), dtype=torch.int32, device=images.device).expand_as(pixels))
    brightest = counts.gather(2, pixels.amax(2, keepdim=True))
    step = (pixels.shape[2] - brightest).div(LEVELS - 1, rounding_mode='floor')
    below = counts.cumsum(2, dtype=torch.int32) - counts
    equal = (step // 2 + below).div(step.clamp(min=1), rounding_mode='floor').clamp_(max=LEVELS - 1)
    return torch.where(step > 0, equal, _levels(images).int())


TABLES: dict[str, Table] = {
    'Invert': invert,
    'Posterize': posterize,
    'Solarize': solarize,
    'SolarizeAdd': solarize_add,
    'Brightness': brightness,
    'Contrast': contrast,
    'AutoContrast': autocontrast,
    'Equalize': equalize,
}

"""Operations on the channels of a pixel (grey, saturation, hue) and on its neighbours (sharpness, blur).

Implements: Pillow's conversion to grey and to HSV, ``ImageEnhance`` (colour, sharpness) and torchvision's Gaussian blur
of 23 pixels, each within one grey level.
Source: written from the documented formulas.
"""

import torch
from torch import Tensor

from .resample import blur_weights, weighted_sums

BLUR_KERNEL = 23  # pixels, of timm's blur
GREY_WEIGHTS = (19595, 38470, 7471)  # of red, green, blue, in 1 / 65536 (ITU-R 601-2)


def blend(base: Tensor, images: Tensor, factor: Tensor) -> Tensor:
    """``base + factor * (images - base)`` in 0..255, cut to whole grey levels as Pillow does."""
    return (base + factor.float() * (images - base)).clamp_(0, 255).to(torch.uint8)


def grey_levels(images: Tensor) -> Tensor:
    """Grey of uint8 images, (n, C, H, W) to (n, 1, H, W) int32."""
    levels = images.int()
    if images.shape[1] == 1:
        return levels
    red, green, blue = (weight * levels[:, i:i + 1] for i, weight in enumerate(GREY_WEIGHTS))
    return (red + green + blue + 32768) >> 16


def _column(arguments: Tensor) -> Tensor:
    return arguments.view(-1, 1, 1, 1)


def grey(images: Tensor, arguments: Tensor) -> Tensor:
    return grey_levels(images).to(torch.uint8).expand_as(images)


def saturation(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with grey; the argument is the weight of the image."""
    return blend(grey_levels(images).float(), images.float(), _column(arguments))


def sharpness(images: Tensor, arguments: Tensor) -> Tensor:
    """Blend with the smoothed image; the argument is the weight of the image. The outermost pixels stay."""
    if min(images.shape[-2:]) < 3:
        return images
    levels = images.float()
    rows = levels[:, :, :-2] + levels[:, :, 1:-1] + levels[:, :, 2:]
    around = rows[..., :-2] + rows[..., 1:-1] + rows[..., 2:]
    smooth = levels.clone()
    # the centre weighs 5 of 13
    smooth[:, :, 1:-1, 1:-1] = ((around + 4 * levels[:, :, 1:-1, 1:-1]) / 13 + 0.5).floor_()
    return blend(smooth, levels, _column(arguments))


def hue(images: Tensor, arguments: Tensor) -> Tensor:
    """Turn the hue by the argument, in turns, -0.5 to 0.5; hue and saturation have 256 levels."""
    if images.shape[1] == 1:
        return images
    high, low = images.amax(1).float(), images.amin(1).float()
    span = (high - low).clamp(min=1)
    red, green, blue = (((high - channel) / span).double() for channel in images.float().unbind(1))
    sixths = torch.where(
        red == 0, blue - green, torch.where(green == 0, 2 + red - blue, 4 + green - red))
    # Pillow keeps these numbers in single precision between its steps
    turns = ((sixths.float().double() / 6 + 1) % 1).float()
    levels = ((turns.double() * 255).long() + (arguments * 255).long().view(-1, 1, 1)) % 256
    strength = (((high - low) / high.clamp(min=1)).double() * 255).long()
    return _from_hsv(levels, strength, high)


def _from_hsv(hue: Tensor, strength: Tensor, value: Tensor) -> Tensor:
    """RGB images of hue, saturation and value of 0..255, each (n, H, W)."""
    sixths = hue.double() * 6 / 255
    sector = sixths.floor()
    part, strength = sixths - sector, strength.double() / 255
    levels = torch.stack([value.double(), *(
        value * (1 - strength * share) for share in (part.new_ones(()), part, 1 - part))], 1)
    # which of value, 1, part and 1 - part (as shares) red, green and blue take in each sector
    choice = torch.tensor([[0, 2, 1, 1, 3, 0], [3, 0, 0, 2, 1, 1], [1, 1, 3, 0, 0, 2]], device=hue.device)
    return (levels + 0.5).to(torch.uint8).gather(1, choice[:, sector.long() % 6].transpose(0, 1))


def blur(images: Tensor, arguments: Tensor) -> Tensor:
    """Blur by a Gaussian; the argument is its standard deviation in pixels."""
    rows, columns = (blur_weights(arguments, size, BLUR_KERNEL) for size in images.shape[-2:])
    return weighted_sums(images, rows, columns)

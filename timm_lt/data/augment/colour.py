"""Operations on the channels of a pixel (grey, saturation, hue) and on its neighbours (sharpness, blur).

Implements: Pillow's conversion to grey and to HSV, and ``ImageEnhance`` (colour, sharpness), within one grey level.
torchvision's Gaussian blur of 23 pixels, within one grey level.
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
    high, low = images.amax(1), images.amin(1)
    levels = _hue_levels(images, high, low) + (arguments * 255).int().to(torch.uint8).view(-1, 1, 1)  # goes round
    high, span = high.float(), (high - low).float()
    strength = (span / high.clamp(min=1) * 255).floor_() / 255
    # each channel keeps the value in two sixths of the circle, loses the span in two, and changes in between
    offset = torch.tensor([5., 3., 1.], device=images.device).view(3, 1, 1)
    place = (levels.float() * 6 / 255).unsqueeze(1) + offset
    place = place - 6 * (place >= 6)
    lost = torch.minimum(place, 4 - place).clamp_(0, 1).mul_(strength.unsqueeze(1))
    return (high.unsqueeze(1) * (1 - lost) + 0.5).to(torch.uint8)


def _hue_levels(images: Tensor, high: Tensor, low: Tensor) -> Tensor:
    """Pillow's hue of each pixel, 0 to 255; (n, 3, H, W) to (n, H, W), uint8."""
    red, green, blue = ((high - channel).float() / (high - low).clamp(min=1) for channel in images.unbind(1))
    is_red, is_green = red == 0, green == 0
    base = torch.where(is_red, 0., torch.where(is_green, 2., 4.))
    plus = torch.where(is_red, blue, torch.where(is_green, red, green))
    minus = torch.where(is_red, green, torch.where(is_green, blue, red))
    # single and double precision as in Pillow, because the levels are cut, not rounded
    sixths = (base.double() + plus - minus).float()
    turns = (sixths.double() / 6 + 1).frac_().float()
    return (turns.double() * 255).to(torch.uint8)


def blur(images: Tensor, arguments: Tensor) -> Tensor:
    """Blur by a Gaussian; the argument is its standard deviation in pixels."""
    rows, columns = (blur_weights(arguments, size, BLUR_KERNEL) for size in images.shape[-2:])
    return weighted_sums(images, rows, columns)

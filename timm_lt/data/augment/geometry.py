"""Geometric operations: each output pixel takes what lies at one place of the input, or the fill colour.

Implements: Pillow's ``Image.transform(AFFINE)`` and ``Image.rotate``. 'nearest' agrees bit for bit, because it uses the
same fixed-point numbers. 'bilinear' and 'bicubic' (a = -1) agree within one grey level.
Source: written from Pillow's documented formulas.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..._validate import check_option

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic')
GEOMETRIC = ('ShearX', 'ShearY', 'TranslateX', 'TranslateY', 'Rotate')
Combine = Callable[[list[Tensor], Tensor], Tensor]
_ENTRY = {'ShearX': 1, 'ShearY': 3, 'TranslateX': 2, 'TranslateY': 5}


def matrices(spans: Sequence[tuple[str, slice]], arguments: Tensor, height: int, width: int) -> Tensor:
    """Input place of each output place, ``(a x + b y + c, d x + e y + f)``, as (n, 6) of a, b, c, d, e, f; float64.

    Args:
        spans: Names of :data:`GEOMETRIC` and the images of each.
        arguments: Shear factor, offset in pixels or angle in degrees (counter-clockwise), (n,), float64.
        height: Pixels.
        width: Pixels.
    """
    result = torch.tensor([1., 0, 0, 0, 1, 0], dtype=torch.float64).repeat(len(arguments), 1)
    for name, span in spans:
        if name == 'Rotate':
            result[span] = _rotation(arguments[span], height, width)
        else:
            result[span, _ENTRY[name]] = arguments[span]
    return result


def _rotation(degrees: Tensor, height: int, width: int) -> Tensor:
    radians = torch.deg2rad(degrees)
    # Pillow rounds, so that a quarter turn is exact
    cos, sin = radians.cos().round(decimals=15), radians.sin().round(decimals=15)
    x, y = width / 2, height / 2
    return torch.stack([cos, -sin, x - cos * x + sin * y, sin, cos, y - sin * x - cos * y], 1)


def affine(images: Tensor, matrix: Tensor, interpolation: str, fill: Sequence[int]) -> Tensor:
    """Move the pixels of each image.

    Args:
        images: (n, C, H, W), uint8.
        matrix: See :func:`matrices`, any device.
        interpolation: One of :data:`INTERPOLATIONS`.
        fill: Colour of places outside the input, one level for each channel or for all three.
    """
    check_option('interpolation', interpolation, INTERPOLATIONS)
    if interpolation == 'nearest':
        return _affine_nearest(images, matrix, fill)
    height, width = images.shape[-2:]
    a, b, c, d, e, f = matrix.to(images.device).view(-1, 6, 1, 1).unbind(1)
    columns, rows = (torch.arange(s, device=images.device) + 0.5 for s in (width, height))
    x = a * columns + b * rows[:, None] + c
    y = d * columns + e * rows[:, None] + f
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    result = _interpolate(images, x - 0.5, y - 0.5, *_NEIGHBOURS[interpolation])
    return _filled(result, inside, fill)


def _affine_nearest(images: Tensor, matrix: Tensor, fill: Sequence[int]) -> Tensor:
    height, width = images.shape[-2:]
    matrix = matrix.clone()
    matrix[:, 2] += 0.5 * (matrix[:, 0] + matrix[:, 1])
    matrix[:, 5] += 0.5 * (matrix[:, 3] + matrix[:, 4])
    fixed = (matrix * 65536 + 0.5).floor().int().to(images.device).view(-1, 6, 1, 1)
    a, b, c, d, e, f = fixed.unbind(1)
    columns, rows = (torch.arange(s, dtype=torch.int32, device=images.device) for s in (width, height))
    rows = rows[:, None]
    x = ((a * columns + c) + b * rows) >> 16
    y = ((d * columns + f) + e * rows) >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    index = (y * width).add_(x).mul_(inside)
    return _filled(_take(images, index), inside, fill)


def _take(images: Tensor, index: Tensor) -> Tensor:
    """Pixels (n, C, H', W') at places (n, H', W') of the flattened images."""
    n, channels = images.shape[:2]
    places = index.long().view(n, 1, -1).expand(-1, channels, -1)
    return images.reshape(n, channels, -1).gather(2, places).view(n, channels, *index.shape[1:])


def _filled(images: Tensor, inside: Tensor, fill: Sequence[int]) -> Tensor:
    """The images in place, with the fill colour outside."""
    inside = inside.unsqueeze(1)
    images.mul_(inside)
    if any(fill):
        colour = torch.tensor(fill[:images.shape[1]], dtype=torch.uint8, device=images.device).view(1, -1, 1, 1)
        images.add_(~inside * colour)
    return images


def window(images: Tensor, top: Tensor, left: Tensor, mirror_y: Tensor, mirror_x: Tensor) -> Tensor:
    """Windows of the size of the images, mirrored where said; black outside the images.

    Args:
        images: (n, C, H, W), uint8.
        top: First row of each window, may be negative, (n,), on the device of the images.
        left: First column.
        mirror_y: Windows to be mirrored top to bottom, bool.
        mirror_x: Windows to be mirrored left to right.
    """
    height, width = images.shape[-2:]

    def places(start: Tensor, mirror: Tensor, length: int) -> tuple[Tensor, Tensor]:
        place = torch.arange(length, device=images.device)
        place = start[:, None] + torch.where(mirror[:, None], place.flip(0), place)
        return place, (place >= 0) & (place < length)

    y, inside_y = places(top, mirror_y, height)
    x, inside_x = places(left, mirror_x, width)
    index = (y.clamp(0, height - 1) * width)[:, :, None] + x.clamp(0, width - 1)[:, None]
    return _take(images, index).mul_((inside_y[:, :, None] & inside_x[:, None]).unsqueeze(1))


def _interpolate(images: Tensor, x: Tensor, y: Tensor, before: int, combine: Combine) -> Tensor:
    """Combine the pixels around each place, first along rows, then columns; the border pixels go on outside."""
    height, width = images.shape[-2:]
    left, top = x.floor(), y.floor()
    fraction_x, fraction_y = ((place - low).unsqueeze(1) for place, low in ((x, left), (y, top)))
    around = range(-before, before + 2)
    columns = [(left.long() + i).clamp_(0, width - 1) for i in around]
    rows = [(top.long() + i).clamp_(0, height - 1) * width for i in around]
    lines = [combine([_take(images, row + column).double() for column in columns], fraction_x) for row in rows]
    return combine(lines, fraction_y).clamp_(0, 255).to(torch.uint8)


def _linear(values: list[Tensor], fraction: Tensor) -> Tensor:
    first, second = values
    return first + (second - first) * fraction


def _cubic(values: list[Tensor], fraction: Tensor) -> Tensor:
    a, b, c, d = values
    return b + fraction * (c - a + fraction * (2 * (a - b) + c - d + fraction * (b - a - c + d)))


# pixels before the nearest one on the left, and how the pixels are combined
_NEIGHBOURS = {'bilinear': (0, _linear), 'bicubic': (1, _cubic)}

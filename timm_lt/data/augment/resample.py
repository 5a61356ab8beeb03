"""Resizing and blurring: every output row and column is a weighted sum of input rows and columns.

Implements: Pillow's ``Image.resize`` ('bilinear', 'bicubic' with a = -0.5, widened where the image shrinks) within one
grey level.
Source: written from the formulas.
"""

import torch
from torch import Tensor


def weighted_sums(images: Tensor, rows: Tensor, columns: Tensor, round_between: bool = False) -> Tensor:
    """``rows @ images @ columns^T`` for each image and channel, rounded to grey levels.

    Args:
        images: (n, C, H, W), uint8.
        rows: Weights (n, H', H).
        columns: Weights (n, W', W).
        round_between: Round to grey levels between the two sums, as Pillow does; columns come first.
    """
    n, channels, height, width = images.shape
    lines = images.transpose(1, 2).float().reshape(n, height * channels, width)
    result = (lines @ columns.transpose(1, 2)).view(n, height, -1)
    if round_between:
        result.add_(0.5).floor_().clamp_(0, 255)
    result = (rows @ result).add_(0.5).clamp_(0, 255).to(torch.uint8)
    return result.view(n, rows.shape[1], channels, -1).transpose(1, 2).contiguous()


def _triangle(x: Tensor) -> Tensor:
    return (1 - x.abs()).clamp_(min=0)


def _cubic(x: Tensor) -> Tensor:
    x = x.abs()
    near = (1.5 * x - 2.5) * x * x + 1
    far = ((2.5 - 0.5 * x) * x - 4) * x + 2
    return torch.where(x < 1, near, torch.where(x < 2, far, 0))


FILTERS = {'bilinear': (1.0, _triangle), 'bicubic': (2.0, _cubic)}  # reach in pixels, weight at a distance


def resize_weights(start: Tensor, length: Tensor, out: int, size: int, interpolation: str) -> Tensor:
    """Weights that resize a window to ``out`` pixels along one axis, (n, out, size), float32.

    Args:
        start: First pixel of each window, (n,).
        length: Pixels of each window.
        out: Pixels after it.
        size: Pixels of the image; the window lies inside.
        interpolation: One of :data:`FILTERS`.
    """
    reach, weight = FILTERS[interpolation]
    length = length.double().view(-1, 1, 1)
    scale = length / out
    widened = scale.clamp(min=1)
    center = (torch.arange(out, device=start.device).view(1, -1, 1) + 0.5) * scale
    pixel = torch.arange(size, device=start.device).view(1, 1, -1) - start.view(-1, 1, 1)
    first = (center - reach * widened + 0.5).floor()
    end = (center + reach * widened + 0.5).floor()
    first, end = first.clamp_(min=0), torch.minimum(end, length)
    used = (pixel >= first) & (pixel < end)
    weights = weight((pixel - (center - 0.5).float()) / widened.float()).mul_(used)
    return weights / weights.sum(2, keepdim=True)


def blur_weights(sigma: Tensor, size: int, kernel: int) -> Tensor:
    """Weights of a Gaussian along one axis, borders mirrored, (n, size, size), float32.

    Args:
        sigma: Standard deviation in pixels, (n,).
        size: Pixels, more than half a kernel.
        kernel: Pixels of the kernel, an odd number.
    """
    half = kernel // 2
    distance = torch.arange(-half, half + 1, device=sigma.device)
    gaussian = torch.exp(-0.5 * (distance / sigma.view(-1, 1)).square()).float()
    gaussian = gaussian / gaussian.sum(1, keepdim=True)
    place = (torch.arange(size, device=sigma.device).view(-1, 1) + distance).abs()
    place = torch.where(place < size, place, 2 * (size - 1) - place)
    weights = torch.zeros(len(sigma), size, size, device=sigma.device)
    return weights.scatter_add_(
        2, place.expand(len(sigma), -1, -1), gaussian[:, None].expand(-1, size, -1).contiguous())

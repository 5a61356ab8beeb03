"""Programs of operations, one per image, run on whole batches: images that need the same kernel go through it together.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from . import colour, geometry, pointwise

IDENTITY = 'Identity'
COLOUR: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    'Grey': colour.grey,
    'Color': colour.saturation,
    'Sharpness': colour.sharpness,
    'Hue': colour.hue,
    'Blur': colour.blur,
}
OPERATIONS = (IDENTITY, *pointwise.TABLES, *geometry.GEOMETRIC, *COLOUR)
CODES = {name: code for code, name in enumerate(OPERATIONS)}
CHUNK = 1 << 22  # values of a group that a kernel takes at once; bounds its memory


class Program(NamedTuple):
    """Operations of each image, in order.

    Attributes:
        codes: Places in :data:`OPERATIONS`, (L, n), int64, on the CPU.
        arguments: See the kernels, (L, n), float64, on the CPU; any number where an operation needs none.
    """

    codes: Tensor
    arguments: Tensor


class Style(NamedTuple):
    """How geometric operations resample.

    Attributes:
        interpolation: 'nearest', 'bilinear' or 'bicubic'.
        fill: Colour outside the image, levels of 0..255; grey images take the first.
    """

    interpolation: str = 'nearest'
    fill: tuple[int, ...] = (0, 0, 0)


NEAREST_BLACK = Style()


class _Group(NamedTuple):
    """Images of one kernel, sorted by operation; codes and arguments stay on the CPU."""

    images: Tensor
    codes: Tensor
    arguments: Tensor

    def spans(self) -> list[tuple[str, slice]]:
        """Each operation's name and its images."""
        ends = torch.bincount(self.codes).cumsum(0).tolist()
        return [
            (OPERATIONS[code], slice(start, end)) for code, (start, end) in enumerate(zip([0, *ends], ends))
            if end > start]


def chunks(members: Tensor, values: int) -> list[Tensor]:
    """``members`` in chunks of at most :data:`CHUNK` values, ``values`` each; none where it is empty."""
    return list(members.split(max(1, CHUNK // values))) if len(members) else []


def run_program(images: Tensor, program: Program, style: Style = NEAREST_BLACK) -> Tensor:
    """Run each image's operations.

    Args:
        images: (n, C, H, W), uint8, any device; C = 1 or 3.
        program: Operations.
        style: Resampling of the geometric ones.

    Returns:
        New images of the same shape.
    """
    images = images.clone()
    for codes, arguments in zip(program.codes, program.arguments):
        codes, order = codes.sort(stable=True)
        arguments = arguments[order]
        counts = torch.bincount(_KERNEL[codes], minlength=len(_FUNCTIONS)).tolist()
        for function, members in zip(_FUNCTIONS, torch.arange(len(codes)).split(counts)):
            if function is None:
                continue
            for chunk in chunks(members, images.shape[1:].numel()):
                places = order[chunk].to(images.device)
                group = _Group(images.index_select(0, places), codes[chunk], arguments[chunk])
                images.index_copy_(0, places, function(group, style))
    return images


def _pointwise(group: _Group, style: Style) -> Tensor:
    images, arguments = group.images, group.arguments.to(group.images.device)
    table = torch.empty((*images.shape[:2], pointwise.LEVELS), dtype=torch.uint8, device=images.device)
    for name, span in group.spans():
        table[span] = pointwise.TABLES[name](images[span], arguments[span])
    return pointwise.map_levels(images, table)


def _geometric(group: _Group, style: Style) -> Tensor:
    matrix = geometry.matrices(group.spans(), group.arguments, *group.images.shape[-2:])
    return geometry.affine(group.images, matrix, style.interpolation, style.fill)


def _coloured(name: str) -> Callable[[_Group, Style], Tensor]:
    kernel = COLOUR[name]
    return lambda group, style: kernel(group.images, group.arguments.to(group.images.device))


# of identity, then in the order of OPERATIONS, so that sorted codes keep the images of a kernel together
_FUNCTIONS = (None, _pointwise, _geometric, *(_coloured(name) for name in COLOUR))
_KERNEL = torch.tensor([
    0, *[1] * len(pointwise.TABLES), *[2] * len(geometry.GEOMETRIC), *range(3, 3 + len(COLOUR))], device='cpu')


def program_of(names: Sequence[str], arguments: Sequence[float]) -> Program:
    """One operation per image."""
    return Program(
        torch.tensor([[CODES[name] for name in names]]), torch.tensor([list(arguments)], dtype=torch.float64))

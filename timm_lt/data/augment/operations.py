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
    """Images of one kernel with their operations."""

    images: Tensor
    codes: Tensor
    arguments: Tensor

    def split(self) -> list[tuple[str, Tensor]]:
        """Each operation's name and images, as places in the group on the CPU."""
        return [(OPERATIONS[c], (self.codes == c).nonzero().flatten()) for c in self.codes.unique().tolist()]


def chunks(members: Tensor, values: int) -> list[Tensor]:
    """``members`` in parts of at most :data:`CHUNK` values, ``values`` each; none where it is empty."""
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
        kernels = _KERNEL[codes]
        for kernel, function in enumerate(_FUNCTIONS):
            for members in chunks((kernels == kernel).nonzero().flatten(), images.shape[1:].numel()):
                places = members.to(images.device)
                group = _Group(images.index_select(0, places), codes[members], arguments[members])
                images.index_copy_(0, places, function(group, style))
    return images


def _pointwise(group: _Group, style: Style) -> Tensor:
    images, device = group.images, group.images.device
    table = torch.empty((*images.shape[:2], pointwise.LEVELS), dtype=torch.uint8, device=device)
    for name, members in group.split():
        arguments, members = group.arguments[members].to(device), members.to(device)
        values = pointwise.TABLES[name](images.index_select(0, members), arguments)
        table[members] = values.to(torch.uint8).expand(-1, images.shape[1], -1)
    return pointwise.map_levels(images, table)


def _geometric(group: _Group, style: Style) -> Tensor:
    names, members = zip(*group.split())
    matrix = geometry.matrices(names, members, group.arguments, *group.images.shape[-2:])
    return geometry.affine(group.images, matrix, style.interpolation, style.fill)


def _coloured(name: str) -> Callable[[_Group, Style], Tensor]:
    kernel = COLOUR[name]
    return lambda group, style: kernel(group.images, group.arguments.to(group.images.device))


_FUNCTIONS = (_pointwise, _geometric, *(_coloured(name) for name in COLOUR))


def _kernel(name: str) -> int:
    if name in pointwise.TABLES:
        return 0
    if name in geometry.GEOMETRIC:
        return 1
    return -1 if name == IDENTITY else 2 + list(COLOUR).index(name)


_KERNEL = torch.tensor([_kernel(name) for name in OPERATIONS])


def program_of(names: Sequence[str], arguments: Sequence[float]) -> Program:
    """One operation per image."""
    return Program(
        torch.tensor([[CODES[name] for name in names]]), torch.tensor([list(arguments)], dtype=torch.float64))

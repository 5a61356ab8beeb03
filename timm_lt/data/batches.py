"""Which images make up which step, on which process."""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .._validate import check_range, check_whole

__all__ = ['Batch', 'EpochBatches', 'EvalBatches']


class Batch(NamedTuple):
    """One process's part of a step.

    Attributes:
        step: Step within the epoch.
        indices: Images of this process, (B,), int64.
        size: Images of all processes together.
        rows: Places of ``indices`` in the global batch.
        start: Place of the global batch in the epoch's order.
        repeated: Whether the epoch has drawn an image of ``indices`` before, (B,); None outside of training.
    """

    step: int
    indices: Tensor
    size: int
    rows: slice
    start: int
    repeated: Tensor | None = None


class EpochBatches:
    """Training batches: the epoch's order cut into global batches, each dealt out to the processes.

    Step t takes draws ``[t * W * B, (t + 1) * W * B)`` of the order; process r takes every W-th of them, from the r-th
    on. So the same images meet in a step whether one process takes 2 B or two take B each.

    Args:
        sampler: A sampler of this package, made without ``num_replicas``; or any torch sampler that yields indices.
        batch_size: Images B of a step on one process.
        world: Number of processes W.
        rank: This process.
        drop_last: Leave out the last draws that do not fill a step. False: a shorter last step, the same number of
            images on each process. An epoch shorter than one step always has one shorter step.

    Raises:
        ValueError: If an argument is out of range or the sampler divides the epoch itself. Also if an epoch has fewer
            images than processes.
    """

    def __init__(self, sampler: Any, batch_size: int, *, world: int = 1, rank: int = 0, drop_last: bool = True) -> None:
        check_whole('batch_size', batch_size, 1)
        check_range('world', world, 1)
        check_range('rank', rank, 0, world - 1)
        if (getattr(sampler, 'num_replicas', None) or 1) > 1:
            raise ValueError(
                f'{type(sampler).__name__} divides the epoch among processes already; create it without num_replicas')
        self.sampler = sampler
        self.batch_size = batch_size
        self.world = world
        self.rank = rank
        self.drop_last = drop_last
        self.epoch = 0
        self.start_step = 0
        if len(self) == 0:
            raise ValueError(
                f'an epoch of {self._draws()} images has no step for {world} processes; use fewer processes')

    def _draws(self) -> int:
        return getattr(self.sampler, 'num_samples', None) or len(self.sampler)

    def __len__(self) -> int:
        """Steps of a whole epoch."""
        draws, window = self._draws(), self.batch_size * self.world
        if self.drop_last and draws >= window:
            return draws // window
        return math.ceil(draws // self.world * self.world / window)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration and the step that it starts with."""
        check_range('start_step', start_step, 0, len(self))
        self.epoch = epoch
        self.start_step = start_step
        if hasattr(self.sampler, 'set_epoch'):
            self.sampler.set_epoch(epoch)

    def order(self) -> Tensor:
        """Images of the epoch over all processes, (M,), int64."""
        if hasattr(self.sampler, 'order'):
            return self.sampler.order(self.epoch)
        return torch.as_tensor(list(self.sampler), dtype=torch.int64, device='cpu')

    def __iter__(self) -> Iterator[Batch]:
        order, size = self.order(), self.batch_size * self.world
        repeated = _repeated(order)
        rows = slice(self.rank, None, self.world)
        for step in range(self.start_step, len(self)):
            window = order[step * size:(step + 1) * size]
            window = window[:len(window) // self.world * self.world]
            again = repeated[step * size:step * size + len(window)]
            yield Batch(step, window[rows], len(window), rows, step * size, again[rows])


def _repeated(order: Tensor) -> Tensor:
    """Places of an order whose image came before, (M,), bool."""
    images, places = order.sort(stable=True)
    again = torch.zeros_like(order, dtype=torch.bool)
    again[places[1:]] = images[1:] == images[:-1]
    return again


class EvalBatches:
    """Evaluation batches: process r takes images r, r + W, ... in order, each image exactly once over all processes.

    Processes may differ by one in images and steps; a reduction over processes belongs after the last step.

    Args:
        num_images: Images of all processes together.
        batch_size: Images of a step on one process.
        world: Number of processes W.
        rank: This process.
    """

    epoch = 0

    def __init__(self, num_images: int, batch_size: int, *, world: int = 1, rank: int = 0) -> None:
        check_whole('batch_size', batch_size, 1)
        check_range('rank', rank, 0, world - 1)
        self.indices = torch.arange(rank, num_images, world, device='cpu')
        self.batch_size = batch_size

    def __len__(self) -> int:
        return math.ceil(len(self.indices) / self.batch_size)

    def __iter__(self) -> Iterator[Batch]:
        for step in range(len(self)):
            start = step * self.batch_size
            indices = self.indices[start:start + self.batch_size]
            yield Batch(step, indices, len(indices), slice(None), start)

"""Accumulation windows: the micro-batches of one optimizer step, mixed on the way."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
from timm.data import Mixup
from torch import Tensor


class Window(NamedTuple):
    """The micro-batches of one step.

    Attributes:
        inputs: Images or features of each micro-batch.
        targets: Labels, or soft targets where images are mixed.
        labels: Labels (B,) of each, for the training metrics.
    """
    inputs: list[Tensor]
    targets: list[Tensor]
    labels: list[Tensor]


class Windows:
    """The windows of an epoch; the last of an epoch may be shorter.

    Args:
        loader: Iterates (input, labels), or (input, labels, *partners of ``mix``), on the device;
            ``set_epoch(epoch, start_step)``, ``len()`` in micro-batches.
        grad_accum_steps: Micro-batches of a window, >= 1.
        mix: A function of a batch that gives mixed inputs and soft targets, e.g. timm's ``Mixup``; None: none.
        mixup_off_epoch: Epoch from which on Mixup is off; 0: never.
        seed: Seed of the mixing, with epoch, step and ``rank``.
        rank: This process.
    """

    def __init__(
            self,
            loader: Any,
            *,
            grad_accum_steps: int = 1,
            mix: Callable[..., tuple[Tensor, Tensor]] | None = None,
            mixup_off_epoch: int = 0,
            seed: int = 0,
            rank: int = 0,
    ) -> None:
        self.loader = loader
        self.grad_accum_steps = grad_accum_steps
        self.mix: Any = mix
        self.mixup_off_epoch = mixup_off_epoch
        self.seed = seed
        self.rank = rank
        self._epoch, self._step = 0, 0

    def __len__(self) -> int:
        """Micro-batches of an epoch."""
        return len(self.loader)

    @property
    def updates_per_epoch(self) -> int:
        return -(-len(self.loader) // self.grad_accum_steps)

    def set_epoch(self, epoch: int, step: int = 0) -> None:
        """Choose the epoch of the next iteration and the micro-batch that it starts with."""
        self._epoch, self._step = epoch, step
        self.loader.set_epoch(epoch, step)
        if self.mixup_off_epoch and hasattr(self.mix, 'mixup_enabled'):
            self.mix.mixup_enabled = epoch < self.mixup_off_epoch
        if hasattr(self.mix, 'set_epoch'):
            self.mix.set_epoch(epoch)

    def __iter__(self) -> Iterator[Window]:
        window, step = Window([], [], []), self._step
        for input, label, *partners in self.loader:
            target = label
            if self.mix is not None:
                if isinstance(self.mix, Mixup) and len(label) % 2:  # it pairs images; only a short epoch is odd
                    input, label = input[:-1], label[:-1]
                with numpy_seed(self.seed, self._epoch, step, self.rank):
                    input, target = self.mix(input, label, *partners)
            for column, value in zip(window, (input, target, label)):
                column.append(value)
            step += 1
            if len(window.inputs) == self.grad_accum_steps:
                yield window
                window = Window([], [], [])
        if window.inputs:
            yield window


@contextmanager
def numpy_seed(*key: int) -> Iterator[None]:
    """numpy's global generator (timm's Mixup uses it) seeded by ``key`` inside the block, restored after it."""
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence(key).generate_state(1)[0])
    try:
        yield
    finally:
        np.random.set_state(state)

"""The inputs of a module during forward passes of the network around it."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn as nn
from torch import Tensor


class InputTap:
    """A forward pre-hook that keeps the first argument; one that stays registered can be compiled with the module."""

    def __init__(self) -> None:
        self.value: Tensor | None = None

    def __call__(self, module: nn.Module, args: tuple) -> None:
        self.value = args[0]

    def take(self) -> list[Tensor]:
        """The argument of the last call, then forgotten; an empty list without a call."""
        value, self.value = self.value, None
        return [] if value is None else [value]


@contextmanager
def captured_inputs(module: nn.Module) -> Iterator[list[Tensor]]:
    """Collects the first argument of each call of ``module`` inside the block."""
    inputs: list[Tensor] = []

    def keep(_: nn.Module, args: tuple) -> None:
        inputs.append(args[0])

    hook = module.register_forward_pre_hook(keep)
    try:
        yield inputs
    finally:
        hook.remove()

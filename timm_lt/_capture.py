"""What a module is called with, seen from outside."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch.nn as nn
from torch import Tensor


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

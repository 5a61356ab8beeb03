"""A plain torch closure, for methods that pass a batch as a whole."""

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch

from ...losses._criterion import hold_statistics
from .random import RandomReplay


class FunctionClosure:
    """A function as the closure of one step: each of its passes draws the same random numbers.

    Args:
        function: Clears the gradients, runs forward and backward, and returns the loss.
        device: Device of the model.
    """

    def __init__(self, function: Callable[[], Any], device: torch.device) -> None:
        self.function = function
        self._replay = RandomReplay(device)

    def zero_grad(self) -> None:
        """Nothing, because the function clears the gradients."""

    def plain_gradients(self) -> Any:
        return self.function()

    def mean_pass(self, first: bool = True, sync: bool = True) -> Any:
        """A call of the function; no loss takes statistics unless it is the ``first``."""
        with nullcontext() if first else hold_statistics(), self._replay('batch'):
            return self.function()

"""A vector that a method keeps from step to step, saved with the state of the base optimizer."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from .engine import SharpnessAware


class KeepsVector(SharpnessAware):
    """Base of methods that keep one number per parameter, 0 at first.

    A step stages its new vector, and the vector changes once the step is taken. A step that a gradient scaler skips
    changes nothing. The numbers are entries of the base optimizer's state, so that checkpoints, also sharded ones, hold
    them. All processes need the same vector, so ``local_ascent`` is refused.
    """

    joint_only = True
    vector_key = ''  # entry of the state
    _transient: tuple[str, ...] = ('_found', '_new_vector')
    _found: list[tuple[Tensor, Tensor]] | None  # by the passes of this step
    _new_vector: list[tuple[Tensor, Tensor]] | None

    def vector(self, params: Sequence[Tensor]) -> list[Tensor]:
        """The kept vector at some parameters, not to be written to."""
        kept = [self.state[p].get(self.vector_key) if p in self.state else None for p in params]
        return [torch.zeros_like(p) if v is None else v for p, v in zip(params, kept)]

    def stage_vector(self, params: Sequence[Tensor], vector: Sequence[Tensor]) -> None:
        """Keep these numbers at some parameters once the step is taken."""
        self._found = list(zip(params, vector))

    def _begin_step(self) -> None:
        super()._begin_step()
        self._found = self._new_vector = None

    def _stage_step(self) -> None:
        super()._stage_step()
        self._new_vector, self._found = self._found, None  # a plain closure clears gradients between the passes

    def zero_grad(self, set_to_none: bool = True) -> None:
        self._new_vector = None
        super().zero_grad(set_to_none)

    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        loss = super().step(closure)
        # after the base, because many optimizers begin their state where a parameter has none
        for p in self.trained_parameters():
            if p.grad is not None and self.vector_key not in self.state[p]:
                self.state[p][self.vector_key] = torch.zeros_like(p)
        for p, v in self._new_vector or ():
            self.state[p][self.vector_key] = v
        self._new_vector = None
        return loss

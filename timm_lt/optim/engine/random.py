"""The same random numbers in every pass of a step, so that all passes see one function of the weights."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


class RandomReplay:
    """Records torch's global generators at the first pass of a batch and replays them at its later passes.

    Dropout masks, stochastic depth and sampled losses are therefore equal in all passes. After a step the generators
    continue as after its first passes alone. A method thus draws as many random numbers as its base optimizer.

    Args:
        device: Device of the model, whose generator is replayed beside that of the CPU.

    Attributes:
        drawn: Whether a recorded pass drew random numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.drawn = False
        self._states: dict[Hashable, list[Tensor]] = {}

    @contextmanager
    def __call__(self, key: Hashable) -> Iterator[None]:
        """A pass over the samples named by ``key``: recorded the first time, replayed afterwards."""
        now = generator_states(self.device)
        if key not in self._states:
            self._states[key] = now
            yield
            self.drawn = self.drawn or not all(map(torch.equal, now, generator_states(self.device)))
            return
        set_generators(self.device, self._states[key])
        try:
            yield
        finally:
            set_generators(self.device, now)


def generator_states(device: torch.device) -> list[Tensor]:
    """States of torch's global generators: the CPU's, then that of ``device`` if it is another one."""
    states = [torch.get_rng_state()]
    if device.type != 'cpu':
        states.append(torch.get_device_module(device).get_rng_state(*_index(device)))
    return states


def set_generators(device: torch.device, states: list[Tensor]) -> None:
    """Put the generators into the states that :func:`generator_states` returned."""
    torch.set_rng_state(states[0])
    if device.type != 'cpu':
        torch.get_device_module(device).set_rng_state(states[1], *_index(device))


def _index(device: torch.device) -> list[torch.device]:
    return [] if device.type == 'mps' else [device]  # of mps there is one, and its functions take no device

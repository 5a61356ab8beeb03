"""Random numbers and new tensors that depend on nothing outside: seeds by key, the CPU as default device."""

import random
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import numpy as np
import torch


def on_cpu() -> AbstractContextManager:
    """Tensors made without a device inside the block lie on the CPU, whatever ``torch.set_default_device`` says."""
    return nullcontext() if torch.get_default_device().type == 'cpu' else torch.device('cpu')


@contextmanager
def seeded(key: tuple[int, ...]) -> Iterator[None]:
    """Seed the global CPU generators of Python, numpy and torch by ``key`` inside the block; restore them after it."""
    states = random.getstate(), np.random.get_state(), torch.get_rng_state()
    words = np.random.SeedSequence(key).generate_state(4)
    random.seed(int(words[0]))
    np.random.seed(words[1])
    torch.default_generator.manual_seed(int(words[2]) << 32 | int(words[3]))
    try:
        yield
    finally:
        random.setstate(states[0])
        np.random.set_state(states[1])
        torch.set_rng_state(states[2])

"""Random numbers of a step: drawn for the global batch on the CPU, of which a process takes its rows."""

import numpy as np
import torch
from torch import Tensor


class Draws:
    """Random numbers for the images of one process.

    Args:
        key: Whole numbers >= 0 that decide every number, e.g. (seed, epoch, step).
        size: Images of the global batch.
        rows: Places of this process's images in the global batch.
    """

    def __init__(self, key: tuple[int, ...], size: int, rows: slice) -> None:
        seed = np.random.SeedSequence(key).generate_state(1, np.uint64)
        self.generator = torch.Generator().manual_seed(int(seed[0]))
        self.size = size
        self.rows = rows

    def uniform(self, *shape: int) -> Tensor:
        """Numbers of [0, 1), (*shape, n)."""
        return torch.rand((*shape, self.size), generator=self.generator)[..., self.rows]

    def integers(self, below: int, *shape: int) -> Tensor:
        """Whole numbers of [0, below), (*shape, n), int64."""
        return torch.randint(0, below, (*shape, self.size), generator=self.generator)[..., self.rows]

    def normal(self, *shape: int) -> Tensor:
        """Standard normal numbers, (n, *shape)."""
        return torch.randn((self.size, *shape), generator=self.generator)[self.rows]

    def choices(self, weights: Tensor, number: int) -> Tensor:
        """Different places of ``weights``, one after the other with these weights, (number, n), int64."""
        weights = weights.expand(self.size, -1)
        return torch.multinomial(weights, number, generator=self.generator)[self.rows].T

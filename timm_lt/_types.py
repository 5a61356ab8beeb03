"""Shared type aliases and protocols."""

from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, Protocol

import torch

Reduction = Literal['none', 'mean', 'sum']
ParamsT = Any  # what torch.optim accepts: an iterable of parameters, of groups or of named parameters
PlainClosure = Callable[[], torch.Tensor]
ClassWeight = Sequence[float] | torch.Tensor


class HasCounts(Protocol):
    """A ``ClassDistribution``, or anything else with training images per class, (C,)."""

    @property
    def counts(self) -> torch.Tensor: ...


# whole numbers in label order, counts by class (a mapping, a table's value counts), or a ClassDistribution
ClassCounts = Iterable[Any] | HasCounts

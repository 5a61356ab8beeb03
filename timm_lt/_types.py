"""Shared type aliases and protocols."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch

Reduction = Literal['none', 'mean', 'sum']
ParamsT = Any  # what torch.optim accepts: an iterable of parameters, of groups or of named parameters
ClassCounts = Sequence[int] | torch.Tensor
PlainClosure = Callable[[], torch.Tensor]

"""Scores from the logits alone.

Papers: D. Hendrycks and K. Gimpel, ICLR 2017 (softmax); W. Liu et al., "Energy-based Out-of-distribution Detection",
NeurIPS 2020, Eq. (4) (energy); D. Hendrycks et al., "Scaling Out-of-Distribution Detection for Real-World Settings",
ICML 2022 (maximum logit).
Source: written from the papers.
Differs from the papers / official code: no.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from ...._validate import check_range
from ..predictions import CHUNK_ELEMENTS, finite_rows
from .registry import OpenSetScore, as_float, register_score


def by_rows(logits: Tensor, function: Callable[[Tensor], Tensor]) -> Tensor:
    """A function of the logits, a chunk of the rows at a time; NaN for rows that are not finite."""
    rows = max(1, CHUNK_ELEMENTS // logits.shape[1])
    parts = []
    for start in range(0, len(logits), rows):
        z = as_float(logits[start:start + rows])
        parts.append(function(z).masked_fill(~finite_rows(z), torch.nan))
    return torch.cat(parts)


@register_score('softmax')
class Softmax(OpenSetScore):
    """The largest softmax value."""

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert logits is not None
        return by_rows(logits, lambda z: z.softmax(1).amax(1))


@register_score('energy')
class Energy(OpenSetScore):
    """``T logsumexp(z / T)``.

    Args:
        temperature: T, > 0.
    """

    def __init__(self, temperature: float = 1.0) -> None:
        self.temperature = check_range('temperature', temperature, 0, low_open=True)

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert logits is not None
        return by_rows(logits, lambda z: self.temperature * (z / self.temperature).logsumexp(1))


@register_score('max_logit')
class MaxLogit(OpenSetScore):
    """The largest logit."""

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert logits is not None
        return by_rows(logits, lambda z: z.amax(1))

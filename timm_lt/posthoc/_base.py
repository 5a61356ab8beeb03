"""Base class of the corrections, and checks of the logits that they get."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._labels import check_label_range, read_labels


class PostHocMethod(ABC):
    """One way to turn logits into log-scores. Its values lie in a :class:`timm_lt.posthoc.PostHoc`."""

    options: tuple[str, ...] = ('tau', 'metric')  # what a user may set in a run
    transductive = False  # whether it can take statistics of the images that it is called on
    symbol = 'tau'
    chooses_tau = True

    def needed(self, fitted: Any) -> str | None:
        """Attribute of ``fitted`` that must be given, or None."""
        return None

    def values(self, logits: Tensor, **given: Any) -> dict[str, Any]:
        """Values that hold for every tau: attributes of a ``PostHoc``.

        Args:
            logits: Logits of the images to fit on, (M, C).
            **given: Arguments of :func:`timm_lt.posthoc.choose_tau`; each method reads its own.
        """
        return {}

    @abstractmethod
    def apply(self, fitted: Any, logits: Tensor) -> Tensor:
        """Log-scores, the shape of ``logits``, (B, C) or (C,)."""


def at_least_float32(name: str, values: Tensor) -> Tensor:
    """``values`` in float32 (float64 stays); a ValueError unless it is a tensor (B, C) or (C,)."""
    # shape[0], because len() of a tensor fixes the batch size of an exported graph
    if not isinstance(values, Tensor) or not values.is_floating_point() or values.ndim not in (1, 2) or (
            values.shape[0] == 0):
        raise ValueError(f'{name} must be a floating-point tensor (B, C) or (C,), not empty, got {values!r:.80}')
    return values if values.dtype == torch.float64 else values.float()


def tensor_like(values: Sequence[float], like: Tensor) -> Tensor:
    """Stored values as a tensor for logits ``like``."""
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return torch.tensor(values, dtype=dtype, device=like.device)


def check_finite(name: str, logits: Tensor) -> None:
    """Raise a ValueError for logits (M, C) with NaN or +inf. -inf may mask a class, but not all classes of a row."""
    bad = int((~logits.amax(1).isfinite()).sum())  # NaN and +inf show in the largest entry
    if bad:
        raise ValueError(
            f'{bad} of {len(logits)} rows of {name} are not finite, as those of a network that diverged; '
            f'a correction is fitted to finite logits only')


def check_labelled(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
    """Finite logits (M, C) and int64 labels (M,) on one device; a ValueError if they are anything else."""
    logits = at_least_float32('val_logits', logits).detach()
    targets = read_labels(targets, 'val_targets')
    if logits.ndim != 2 or targets.shape != logits.shape[:1]:
        raise ValueError(
            f'validation needs logits (M, C) and labels (M,), got {tuple(logits.shape)} and {tuple(targets.shape)}')
    check_label_range(targets, logits.shape[1])
    check_finite('val_logits', logits)
    return logits, targets.to(logits.device)

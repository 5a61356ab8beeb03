"""Any criterion, ours or not: its per-sample values, the divisor of its mean, its statistics."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ._targets import IGNORE_INDEX

_TIMM_SOFTMAX = ('LabelSmoothingCrossEntropy', 'SoftTargetCrossEntropy')  # evaluated by torch's cross-entropy
_held = False  # see hold_statistics


def sample_losses(criterion: Any, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per-sample values of any criterion and the normaliser of its mean.

    Args:
        criterion: A :class:`LongTailLoss`, or torch's or timm's softmax cross-entropy. Also any module or function
            whose ``reduction`` attribute takes ``'none'``, which gives (B,).
        output: What the model returned; logits (B, C) or what the criterion takes.
        target: (B,) or soft (B, C).

    Returns:
        Values (B,) and a scalar tensor N, so that ``values.sum() / N`` is the criterion's mean.

    Raises:
        TypeError: If the criterion gives no per-sample values.
    """
    if hasattr(criterion, 'weighted_per_sample'):
        values = criterion(output, target, reduction='none')
        return values, criterion.normalizer(target)
    count = mean_normalizer(criterion, target)
    name = type(criterion).__name__
    if name in _TIMM_SOFTMAX:
        smoothing = float(getattr(criterion, 'smoothing', 0.0))
        return F.cross_entropy(output, target, label_smoothing=smoothing, reduction='none'), count
    if not hasattr(criterion, 'reduction'):
        raise TypeError(
            f'{name} gives no per-sample loss: sharpness-aware methods need a criterion with a `reduction` attribute '
            f"that allows 'none', such as those of timm_lt.list_losses() or torch.nn.CrossEntropyLoss")
    before = criterion.reduction
    criterion.reduction = 'none'
    try:
        values = criterion(output, target)
    finally:
        criterion.reduction = before
    if values.ndim != 1:
        raise TypeError(f"{name} with reduction='none' must give one value per sample, got shape {tuple(values.shape)}")
    return values, count


def ignore_index_of(criterion: Any) -> int | None:
    """Label of the samples that the criterion ignores, None if it ignores no label."""
    return IGNORE_INDEX if type(criterion).__name__ in _TIMM_SOFTMAX else getattr(criterion, 'ignore_index', None)


def mean_normalizer(criterion: Any, target: Tensor) -> Tensor:
    """Divisor of the criterion's mean, a scalar tensor.

    The divisor is the number of samples, or the sum of their class weights; ignored samples do not count.
    """
    if hasattr(criterion, 'weighted_per_sample'):
        return criterion.normalizer(target)
    weight, ignore_index = getattr(criterion, 'weight', None), ignore_index_of(criterion)
    if target.is_floating_point() or weight is None and ignore_index is None:
        return torch.full((), target.shape[0], dtype=torch.float32, device=target.device)
    counted = torch.ones_like(target, dtype=torch.bool) if ignore_index is None else target != ignore_index
    if weight is None:
        return counted.sum(dtype=torch.float32)
    return (weight.to(target.device)[target * counted] * counted).sum()


@contextmanager
def hold_statistics() -> Iterator[None]:
    """No loss takes statistics inside the block: for a function that evaluates a batch again by a loss not known."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before


@contextmanager
def statistics(criterion: Any, mode: str) -> Iterator[None]:
    """``criterion.statistics(mode)`` where the criterion has it, else nothing."""
    if hasattr(criterion, 'commit_statistics'):
        with criterion.statistics(mode):
            yield
    else:
        yield


def several_processes() -> bool:
    """Whether statistics are summed over processes."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


def statistics_held() -> bool:
    """Whether the program is inside a block of :func:`hold_statistics`."""
    return _held

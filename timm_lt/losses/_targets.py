"""Targets of the losses: checks, ignored samples, label smoothing."""

from collections.abc import Callable

import torch
from torch import Tensor

IGNORE_INDEX = -100  # the label that torch's cross-entropy ignores


def is_traced(tensor: Tensor) -> bool:
    """Whether the values of a tensor cannot be read: under ``torch.compile`` or ``vmap``, or on the meta device."""
    return (
        torch.compiler.is_compiling() or tensor.is_meta or torch._C._functorch.is_functorch_wrapped_tensor(tensor))


def check_targets(
        logits: Tensor,
        target: Tensor,
        soft_targets: bool,
        who: str,
        num_classes: int | None = None,
) -> None:
    """Raise a ValueError unless ``target`` is (B,) int64 or, where allowed, (B, C) floating point.

    ``num_classes`` is the C that the logits must have, if known. :func:`check_target_values` reads the values.
    """
    if logits.ndim != 2:
        raise ValueError(f'{who}: logits must have shape (B, C), got {tuple(logits.shape)}')
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(
            f'{who}: the model gives logits of {logits.shape[1]} classes, but the loss was built for {num_classes}; '
            f'pass one class count (and class weight) per output of the model')
    if target.is_floating_point():
        if not soft_targets:
            raise ValueError(
                f'{who} does not support soft targets (Mixup, CutMix, label smoothing); '
                f'switch them off or choose a loss that does, see timm_lt.list_losses(soft_targets=True)')
        if target.shape != logits.shape:
            raise ValueError(
                f'{who}: soft targets must have the shape of the logits {tuple(logits.shape)}, '
                f'got {tuple(target.shape)}')
        return
    if target.shape != logits.shape[:1]:
        raise ValueError(f'{who}: targets must have shape ({logits.shape[0]},), got {tuple(target.shape)}')
    if target.dtype != torch.int64:
        raise ValueError(f'{who}: class indices must be int64, got {target.dtype}; convert them by target.long()')


def check_target_values(target: Tensor, num_classes: int, who: str) -> None:
    """Raise a ValueError for a label outside [0, C) other than IGNORE_INDEX, or a soft target that is no distribution.

    Reads values, which makes the host wait for the device.
    """
    if not target.numel():
        return
    if target.is_floating_point():
        sums = target.sum(1, dtype=torch.float64)
        allowed = 0.05 if target.dtype in (torch.float16, torch.bfloat16) else 1e-3
        off = (sums - 1).abs().max()
        if not off <= allowed or not target.min() >= -allowed:
            row = int((sums - 1).abs().nan_to_num(float('inf')).argmax())
            raise ValueError(
                f'{who}: a soft target must hold shares >= 0 that sum to 1, but row {row} sums to '
                f'{float(sums[row]):.4g} with the smallest entry {float(target[row].min()):.4g}; '
                f'divide each row by its sum')
        return
    low, high = (int(v) for v in target.aminmax())
    if low >= 0 and high < num_classes:
        return
    wrong = target[(target != IGNORE_INDEX) & ((target < 0) | (target >= num_classes))]
    if len(wrong):
        raise ValueError(
            f'{who}: labels must be in [0, {num_classes - 1}], or {IGNORE_INDEX} for samples to ignore, '
            f'got {int(wrong[0])}')


def ignored_samples(target: Tensor) -> Tensor | None:
    """Mask of the samples with the label IGNORE_INDEX, (B,). None for soft targets, or if no label on a CPU is ignored.

    On other devices the mask is not read, because the host would wait for the device.
    """
    if target.is_floating_point():
        return None
    ignored = target == IGNORE_INDEX
    if target.device.type == 'cpu' and not is_traced(target) and not bool(ignored.any()):
        return None
    return ignored


def with_valid_labels(target: Tensor) -> Tensor:
    """Class indices that can index a table: class 0 for ignored samples, whose value :func:`reduce` drops."""
    ignored = ignored_samples(target)
    return target if ignored is None else target.masked_fill(ignored, 0)


def num_counted(target: Tensor) -> Tensor:
    """Samples that are not ignored, a scalar float32 tensor."""
    ignored = ignored_samples(target)
    if ignored is None:
        return torch.full((), target.shape[0], dtype=torch.float32, device=target.device)
    return (~ignored).sum(dtype=torch.float32)


def smooth_target(target: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """``(1 - smoothing) * onehot(target) + smoothing / C``, (B, C), in the dtype of the logits; 0 where ignored."""
    soft = torch.full_like(logits, smoothing / logits.shape[1], requires_grad=False)
    soft.scatter_add_(1, with_valid_labels(target)[:, None], torch.full_like(soft[:, :1], 1 - smoothing))
    ignored = ignored_samples(target)
    return soft if ignored is None else soft.masked_fill(ignored[:, None], 0)


def of_counted_samples(function: Callable[..., Tensor], target: Tensor, *tensors: Tensor) -> Tensor:
    """``function(*tensors, target)`` of the samples that are not ignored, 0 for the others, (B,).

    For losses whose value of a sample depends on the whole batch. Ignored samples make the host wait for the device.

    Args:
        function: Gives one value per sample, (B,).
        target: (B,) or soft (B, C).
        *tensors: Each with samples in dimension 0, the logits first.
    """
    ignored = ignored_samples(target)
    if ignored is None or not bool(ignored.any()):
        return function(*tensors, target)
    none = tensors[0].masked_fill(torch.ones_like(tensors[0], dtype=torch.bool), 0).sum(1)  # zeros with a graph
    kept = (~ignored).nonzero().flatten()
    if not len(kept):
        return none
    return none.index_put((kept,), function(*(t[kept] for t in tensors), target[kept]))

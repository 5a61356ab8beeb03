"""Samples of nested inputs, their classes, and the logits of nested outputs."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ...losses._targets import IGNORE_INDEX


def take_samples(data: Any, index: Tensor) -> Any:
    """The samples ``index`` of a tensor, or of nested tuples, lists and dicts of tensors; samples are dimension 0."""
    if isinstance(data, Tensor):
        return data.index_select(0, index.to(data.device))
    if isinstance(data, dict):
        return type(data)({key: take_samples(value, index) for key, value in data.items()})
    if isinstance(data, (tuple, list)):
        parts = [take_samples(value, index) for value in data]
        return type(data)(*parts) if hasattr(data, '_fields') else type(data)(parts)
    return data


def logits_of(output: Any) -> Tensor:
    """The logits of a model's output: a tensor, or of a dict or tuple the entry ``logits`` or the first."""
    if isinstance(output, Tensor):
        return output
    if isinstance(output, dict):
        return output['logits'] if 'logits' in output else next(iter(output.values()))
    return output.logits if hasattr(output, 'logits') else output[0]


def class_labels(
        targets: Sequence[Tensor], labels: Sequence[Tensor | None], ignore_index: int | None,
) -> list[Tensor]:
    """Class of each sample of each micro-batch, (B,), int64, on the CPU, from one transfer.

    Args:
        targets: Targets of the micro-batches, (B,) or soft (B, C).
        labels: Classes where they are known apart from the targets, (B,); None: the target, or its argmax if soft.
        ignore_index: Target of the samples that the loss ignores; they get IGNORE_INDEX.
    """
    found = []
    for target, label in zip(targets, labels):
        label = target if label is None else label
        if label.is_floating_point():
            label = label.argmax(1)
        elif label.ndim != 1:
            raise ValueError(
                f'target must be class numbers, (B,), or floating-point shares of the classes, (B, C); got '
                f'{tuple(label.shape)} of {label.dtype}')
        if ignore_index is not None and not target.is_floating_point():
            label = label.masked_fill((target == ignore_index).to(label.device), IGNORE_INDEX)
        found.append(label.long())
    if all(label.device.type == 'cpu' for label in found):
        return found
    return list(torch.cat(found).cpu().split([len(label) for label in found]))

"""Checks of the arguments of a step, and of the logits that it produced."""

from typing import TYPE_CHECKING, Any

import torch

from .closure import BatchClosure

if TYPE_CHECKING:
    from .optimizer import SharpnessAware


def check_call(optimizer: 'SharpnessAware', closure: Any) -> None:
    """Raise for a closure, or a context, with which a step cannot be computed.

    Raises:
        TypeError: If the closure cannot be called, or is no :class:`BatchClosure` for a class-aware method.
        RuntimeError: Inside an autocast block.
        ValueError: If ``local_ascent`` meets sharded parameters.
    """
    who = type(optimizer).__name__
    if optimizer.class_aware and not isinstance(closure, BatchClosure):
        raise TypeError(
            f'{who} needs to know the class of each sample: pass timm_lt.optim.BatchClosure(model, criterion, input, '
            f'target), got {type(closure).__name__}')
    if not callable(closure):
        raise TypeError(f'{who} needs a closure that can be called more than once, got {type(closure).__name__}')
    device = next((p.device for group in optimizer.param_groups for p in group['params']), torch.device('cpu'))
    if torch.is_autocast_enabled(device.type):
        raise RuntimeError(
            f'{who} was called inside torch.autocast, whose cache of cast weights would hide the perturbation; leave '
            f'the block, and use autocast inside the closure (BatchClosure does with an accelerator)')
    if optimizer.local_ascent and isinstance(closure, BatchClosure) and closure.sharded:
        raise ValueError('local_ascent=True is not possible with sharded parameters; use local_ascent=False')


def check_output(optimizer: 'SharpnessAware', closure: BatchClosure) -> None:
    """Raise a ValueError for logits of another number of classes than the class counts have."""
    logits, num_classes = closure.output[0], optimizer.num_classes
    if num_classes is not None and logits.ndim == 2 and logits.shape[1] not in (1, num_classes):
        raise ValueError(
            f'{type(optimizer).__name__}: class_counts has {num_classes} entries, but the model gives '
            f'{logits.shape[1]} logits; pass one count per class')

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
    check_no_autocast(optimizer)
    if optimizer.local_ascent and isinstance(closure, BatchClosure) and closure.sharded:
        raise ValueError('local_ascent=True is not possible with sharded parameters; use local_ascent=False')


def check_no_autocast(optimizer: 'SharpnessAware') -> None:
    """Raise a RuntimeError inside an autocast block."""
    device = next((p.device for group in optimizer.param_groups for p in group['params']), torch.device('cpu'))
    if torch.is_autocast_enabled(device.type):
        raise RuntimeError(
            f'{type(optimizer).__name__} was called inside torch.autocast, whose cache of cast weights would hide the '
            f'perturbation; leave the block, and use autocast inside the closure (BatchClosure does with an '
            f'accelerator)')


def check_no_scaler(optimizer: 'SharpnessAware', closure: Any) -> None:
    """Raise a RuntimeError for ``step(closure)`` under a gradient scaler."""
    # Accelerate replaces the method by its own while a gradient scaler steps
    scaling = getattr(optimizer.__dict__.get('step'), '__qualname__', '').startswith('patch_optimizer_step')
    if scaling or (isinstance(closure, BatchClosure) and closure.scaler is not None):
        raise RuntimeError(
            f'{type(optimizer).__name__}.step(closure) cannot unscale or skip under a gradient scaler; call '
            f'timm_lt.optim.optimizer_step(optimizer, closure), or compute_grads(closure) and then step()')


def check_plain_step(optimizer: 'SharpnessAware') -> None:
    """Raise a RuntimeError for a step whose perturbation nobody computed, unless the optimizer allows plain steps."""
    # torch steps with a learning rate of 0 to make the state into which it loads a sharded checkpoint
    if not optimizer.allow_plain and any(group['lr'] for group in optimizer.param_groups):
        raise RuntimeError(
            f'{type(optimizer).__name__}.step() without a closure computes no perturbation and would be a plain step '
            f'of its base optimizer: call timm_lt.optim.optimizer_step(optimizer, closure) instead, or pass '
            f'allow_plain=True to the optimizer if plain steps are wanted')


def check_output(optimizer: 'SharpnessAware', closure: BatchClosure) -> None:
    """Raise a ValueError for logits of another number of classes than the class counts have."""
    logits, num_classes = closure.output[0], optimizer.num_classes
    if num_classes is not None and logits.ndim == 2 and logits.shape[1] not in (1, num_classes):
        raise ValueError(
            f'{type(optimizer).__name__}: class_counts has {num_classes} entries, but the model gives '
            f'{logits.shape[1]} logits; pass one count per class')

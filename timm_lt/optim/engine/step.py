"""The functions with which a training loop steps any optimizer."""

from typing import Any, NamedTuple

import torch
from timm.models import model_parameters
from timm.utils import dispatch_clip_grad
from torch import Tensor

from ..._validate import check_option
from .._tensors import SavedBuffers
from .closure import BatchClosure
from .optimizer import SharpnessAware

__all__ = ['StepResult', 'find_sharpness_aware', 'optimizer_step', 'set_epoch']

_CLIP_MODES = ('norm', 'value', 'agc')


class StepResult(NamedTuple):
    """Result of a step.

    Attributes:
        loss: Mean loss of the batch before the step, detached.
        skipped: Whether the gradient scaler skipped the step because a gradient overflowed.
    """
    loss: Tensor
    skipped: bool


def optimizer_step(
        optimizer: Any,
        closure: BatchClosure,
        accelerator: Any = None,
        clip_grad: float | None = None,
        clip_mode: str = 'norm',
) -> StepResult:
    """Compute gradients, unscale and clip the final ones once, step, clear them, settle the loss's statistics.

    A step that the gradient scaler skips changes the loss scale alone. Weights, buffers, statistics of the loss and the
    state of the optimizer stay. Do not step the scheduler and the moving average of the weights if ``skipped``. Any
    optimizer works: timm's, this package's, inside ``lookahead_``, prepared by Accelerate or not.

    Args:
        optimizer: The optimizer.
        closure: The batch, or the window of micro-batches.
        accelerator: The Accelerator; default that of the closure.
        clip_grad: Bound for the clipping, None for none.
        clip_mode: 'norm', 'value' or 'agc' (which does not clip the last two parameters, the head), as in timm.

    Raises:
        TypeError: If ``closure`` is not a :class:`BatchClosure`.
        RuntimeError: If there is a gradient scaler and the optimizer was not prepared by the accelerator.
    """
    check_option('clip_mode', clip_mode, _CLIP_MODES)
    if not isinstance(closure, BatchClosure):
        raise TypeError(
            f'optimizer_step needs timm_lt.optim.BatchClosure(model, criterion, input, target), got '
            f'{type(closure).__name__}')
    accelerator = closure.accelerator if accelerator is None else accelerator
    if closure.accelerator is not accelerator:
        closure.accelerator = accelerator
        closure.check_wrappers()
    scaler = closure.scaler
    if scaler is not None and not hasattr(optimizer, 'step_was_skipped'):
        raise RuntimeError('mixed precision with a gradient scaler needs optimizer = accelerator.prepare(optimizer)')
    # a forward pass that overflows leaves infinities in running statistics, which a skipped step removes too
    buffers = SavedBuffers(closure.module if scaler is not None else None)
    sharpness_aware = find_sharpness_aware(optimizer)
    if sharpness_aware is None:
        closure.begin_step()
        loss = closure.plain_gradients()
    else:
        loss = sharpness_aware.compute_grads(closure)
    if clip_grad is not None:
        if scaler is not None:
            scaler.unscale_(_unprepared(optimizer))
        dispatch_clip_grad(
            model_parameters(closure.module, exclude_head=clip_mode == 'agc'), value=clip_grad, mode=clip_mode)
    optimizer.step()
    skipped = scaler is not None and bool(optimizer.step_was_skipped)
    optimizer.zero_grad()
    if skipped:
        buffers.restore()
    closure.settle_statistics(not skipped)
    return StepResult(loss.detach(), skipped)


def set_epoch(
        optimizer: Any, epoch: int, num_epochs: int | None = None, steps_per_epoch: int | None = None,
) -> None:
    """Tell an optimizer the epoch that begins now, under whatever wrappers; without effect on other optimizers.

    Args:
        optimizer: Any optimizer, as for :func:`optimizer_step`.
        epoch: Counted from 0.
        num_epochs: Number of epochs of the run; None leaves the last value.
        steps_per_epoch: Optimizer steps of an epoch, for a warning about ``every``; None: counted.
    """
    sharpness_aware = find_sharpness_aware(optimizer)
    if sharpness_aware is not None:
        sharpness_aware.set_epoch(epoch, num_epochs, steps_per_epoch)


def find_sharpness_aware(optimizer: Any) -> SharpnessAware | None:
    """The sharpness-aware optimizer under Accelerate's and Lookahead's wrappers, or None."""
    while optimizer is not None and not isinstance(optimizer, SharpnessAware):
        optimizer = getattr(optimizer, 'optimizer', None) or getattr(optimizer, '_base_optimizer', None)
    return optimizer


def _unprepared(optimizer: Any) -> torch.optim.Optimizer:
    while hasattr(optimizer, 'step_was_skipped'):
        optimizer = optimizer.optimizer
    return optimizer

"""Combinations of options that only the built parts show to be impossible, refused before anything is trained."""

from argparse import Namespace
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..losses import list_losses, sample_losses
from ..optim import find_sharpness_aware
from .errors import ConfigError

_OTHER_LOSS = f'choose one of ce, asl, poly, {", ".join(list_losses())}'


def check_sample_values(args: Namespace, criterion: nn.Module, optimizer: Any, num_classes: int) -> None:
    """Raise a ConfigError where a class-aware optimizer meets a loss without one value per sample.

    Args:
        args: The options, for the message.
        criterion: The training loss.
        optimizer: The built optimizer, wrapped or not.
        num_classes: C.
    """
    if getattr(find_sharpness_aware(optimizer), 'class_aware', False) and not gives_sample_values(
            args, criterion, num_classes):
        raise ConfigError(
            f'--opt {args.opt} weights the samples of a batch by their class, and --loss {args.loss} gives no value '
            f'per sample; {_OTHER_LOSS}, or an optimizer that knows no classes (--opt sam)')


def check_stage2_sample_values(args: Namespace, criterion: nn.Module, num_classes: int) -> None:
    """The same for the loss of a trained second stage; ``args`` are those of the second stage."""
    if not gives_sample_values(args, criterion, num_classes):
        raise ConfigError(
            f'--stage2 {args.stage2} needs a loss with one value per sample, and --stage2-loss {args.loss} gives none; '
            f'{_OTHER_LOSS}')


def gives_sample_values(args: Namespace, criterion: nn.Module, num_classes: int) -> bool:
    """Whether :func:`timm_lt.losses.sample_losses` works, tried on two samples for losses that are not ours."""
    if hasattr(criterion, 'weighted_per_sample'):
        return True
    device = next((b.device for b in criterion.buffers()), torch.device('cpu'))
    target = torch.arange(2, device=device) % num_classes
    if args.mixup > 0 or args.cutmix > 0:
        target = F.one_hot(target, num_classes).float()
    try:
        sample_losses(criterion, torch.zeros(2, num_classes, device=device), target)
    except TypeError:
        return False
    return True


def check_compilation(args: Namespace) -> None:
    """Raise a ConfigError for gradient checkpointing under a backend that runs torch's operations as they are.

    The eager backends keep BatchNorm's counter for the second forward pass, and the first one has changed it in place:
    torch refuses the backward pass. Backends on AOTAutograd (inductor, aot_eager) treat the counter as an output.
    """
    if args.grad_checkpointing and (args.torchcompile or '').startswith('eager'):
        raise ConfigError(
            f'--grad-checkpointing does not work with --torchcompile {args.torchcompile}, which keeps what BatchNorm '
            f'changes in place; use --torchcompile inductor or aot_eager, or leave one of the two out')

"""Combinations of options that only the built parts show to be impossible, refused before anything is trained."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from ..losses import list_losses, sample_losses
from ..optim import find_sharpness_aware
from ..optim.approximate import check_stacked
from .errors import ConfigError

_OTHER_LOSS = f'choose one of ce, asl, poly, {", ".join(list_losses())}'


def check_sample_values(
        criterion: nn.Module, loss: str, optimizer: Any, opt: str, num_classes: int, soft_targets: bool) -> None:
    """Raise a ConfigError where a class-aware optimizer meets a loss without one value per sample.

    Args:
        criterion: The training loss.
        loss: Its name, for the message.
        optimizer: The built optimizer, wrapped or not.
        opt: Its name, for the message.
        num_classes: C.
        soft_targets: Images are mixed.
    """
    if getattr(find_sharpness_aware(optimizer), 'class_aware', False) and not gives_sample_values(
            criterion, num_classes, soft_targets):
        raise ConfigError(
            f'--opt {opt} weights the samples of a batch by their class, and --loss {loss} gives no value '
            f'per sample; {_OTHER_LOSS}, or an optimizer that knows no classes (--opt sam)')


def check_stacked_passes(optimizer: Any, opt: str, model: nn.Module) -> None:
    """Raise a ConfigError where ``batchnorm='stacked'`` meets a network that cannot run stacked passes.

    Args:
        optimizer: The built optimizer, wrapped or not.
        opt: Its name, for the message.
        model: The network, not wrapped yet.
    """
    if getattr(find_sharpness_aware(optimizer), 'batchnorm', None) == 'stacked':
        try:
            check_stacked(model)
        except ValueError as e:
            raise ConfigError(f'--opt {opt}: {e}') from e


def check_second_stage_sample_values(criterion: nn.Module, loss: str, stage2: str, num_classes: int) -> None:
    """Raise a ConfigError where a trained second stage meets a loss without one value per sample.

    Args:
        criterion: Loss of the second stage.
        loss: Its name, for the message.
        stage2: Name of the method.
        num_classes: C.
    """
    if not gives_sample_values(criterion, num_classes):
        raise ConfigError(
            f'--stage2 {stage2} needs a loss with one value per sample, and --stage2-loss {loss} gives none; '
            f'{_OTHER_LOSS}')


def gives_sample_values(criterion: nn.Module, num_classes: int, soft_targets: bool = False) -> bool:
    """Whether :func:`timm_lt.losses.sample_losses` works, tried on two samples for losses that are not ours."""
    if hasattr(criterion, 'weighted_per_sample'):
        return True
    device = next((b.device for b in criterion.buffers()), torch.device('cpu'))
    target = torch.arange(2, device=device) % num_classes
    if soft_targets:
        target = F.one_hot(target, num_classes).float()
    try:
        sample_losses(criterion, torch.zeros(2, num_classes, device=device), target)
    except TypeError:
        return False
    return True

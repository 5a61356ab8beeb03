"""Losses by name."""

from typing import Any

import torch.nn as nn
from timm.loss import LOSS_TYPES
from timm.loss._loss_factory import create_classification_loss as timm_create_classification_loss

from .._registry import LOSSES, call_factory

TIMM_LOSS_NAMES = tuple(LOSS_TYPES)  # as they were before this package adds its own


def list_losses(filter: str = '', soft_targets: bool | None = None) -> list[str]:
    """Names of the losses that this package adds to timm's, sorted.

    Args:
        filter: Wildcard such as ``'*softmax*'``; empty for all.
        soft_targets: Only those that accept (True) or refuse (False) soft targets; None for all.
    """
    return [n for n in LOSSES.names(filter) if soft_targets is None or LOSSES.info(n).soft_targets == soft_targets]


def create_loss(name: str, class_counts: Any = None, **kwargs: Any) -> nn.Module:
    """Create a loss by name, ours or timm's.

    Args:
        name: One of :func:`list_losses` or of ``timm.loss.LOSS_TYPES``.
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``. Handed to the losses that
            need it; others ignore it, so that a script can always pass it.
        **kwargs: Options of the loss.

    Returns:
        A module called as ``loss(logits, target)``.

    Raises:
        ValueError: If the name is unknown or an option out of range.
        TypeError: If the loss has no such option, or needs class counts and got none.

    Examples:
        >>> loss = create_loss('balanced_softmax', class_counts=[500, 50, 5])
    """
    if name in TIMM_LOSS_NAMES and name not in LOSSES:
        return timm_create_classification_loss(name, **kwargs)
    info = LOSSES.info(name, also=TIMM_LOSS_NAMES)
    if 'class_counts' in info.needs:
        if class_counts is None:
            raise TypeError(
                f'loss {name!r} needs class_counts, the number of training images of each class; '
                f'e.g. class_counts=ClassDistribution.from_targets(targets).counts')
        kwargs['class_counts'] = class_counts
    return call_factory(info, 'loss', **kwargs)

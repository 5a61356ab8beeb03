"""Losses by name."""

import inspect
from collections.abc import Callable
from typing import Any

import torch.nn as nn
from timm.loss import LOSS_TYPES
from timm.loss._loss_factory import create_classification_loss as timm_create_classification_loss

from .._registry import LOSSES, call_factory
from .._timm_hooks import extends_timm
from .._validate import check_class_counts

TIMM_LOSS_NAMES = tuple(LOSS_TYPES)  # without the losses that this package adds


def list_losses(filter: str = '', soft_targets: bool | None = None, views: bool = False) -> list[str]:
    """Names of the losses on logits that this package adds to timm's, sorted.

    Args:
        filter: Wildcard such as ``'*softmax*'``; empty for all.
        soft_targets: Only those that accept (True) or refuse (False) soft targets; None for all.
        views: Also the losses that need a network of several views, such as ``'bcl'``.
    """
    infos = [LOSSES.info(n) for n in LOSSES.names(filter)]
    return [
        info.name for info in infos
        if (soft_targets is None or info.soft_targets == soft_targets)
        and (views or not getattr(info.factory, 'views', 1) > 1)]


def create_loss(name: str, class_counts: Any = None, **kwargs: Any) -> nn.Module:
    """Create a loss by name, ours or timm's.

    Args:
        name: One of ``list_losses(views=True)`` or of ``timm.loss.LOSS_TYPES``.
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``. Losses that do not need it
            ignore it, so a script can always pass it.
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


@extends_timm('create_classification_loss')
def create_loss_for_timm(
        original: Callable, loss_type: str | None = None, multi_label: bool = False, *args: Any, **kwargs: Any,
) -> nn.Module:
    """Criterion of this package, in the form that ``timm.loss.create_classification_loss`` returns.

    timm's training script hands over the options of all its losses at once. Those left at their defaults are ignored.
    ``smoothing`` and ``soft_targets`` have timm's meaning. Soft targets ignore smoothing, because Mixup and CutMix have
    applied it. ``class_counts`` and ``class_weight`` go to the loss.

    Args:
        original: timm's function, whose signature tells its options and their defaults.
        loss_type: One of :func:`list_losses`; timm's own losses go to ``original``.
        multi_label: Must be False: our losses are softmax losses of one label per image.
        *args: timm's further options by position.
        **kwargs: timm's options by name, and the own options of the loss.

    Raises:
        ValueError: If the name is unknown, the loss cannot do what is asked, or an option of another loss is set.
        TypeError: If the loss has no such option, or needs class counts and got none.
    """
    if loss_type is None or loss_type in LOSS_TYPES:
        return original(loss_type, multi_label, *args, **kwargs)
    info = LOSSES.info(loss_type, also=TIMM_LOSS_NAMES)
    if multi_label:
        raise ValueError(f'Loss {loss_type!r} is for one label per image, it does not support multi-label targets')
    signature = inspect.signature(original)
    generic = {k: v for k, v in kwargs.items() if k in signature.parameters}
    own = {k: v for k, v in kwargs.items() if k not in signature.parameters}
    bound = signature.bind(loss_type, multi_label, *args, **generic)
    bound.apply_defaults()
    options = dict(bound.arguments)
    for name in ('loss_type', 'multi_label'):
        options.pop(name)

    smoothing, soft_targets = options.pop('smoothing'), options.pop('soft_targets')
    if soft_targets and not info.soft_targets:
        raise ValueError(
            f'Loss {loss_type!r} does not support soft targets (Mixup, CutMix); switch them off or choose one of '
            f'{list_losses(soft_targets=True)}')
    class_counts, num_samples = options.pop('class_counts'), options.pop('num_samples')
    if class_counts is not None and num_samples is not None:
        counted = int(check_class_counts(class_counts, min_count=0, who=f'loss {loss_type!r}').sum())
        if counted != num_samples:
            raise ValueError(f'class_counts add up to {counted}, but num_samples is {num_samples}')
    class_weight = options.pop('class_weight')
    if class_weight is not None:
        if isinstance(class_weight, (int, float)):
            raise ValueError(f'class_weight must have one value per class for loss {loss_type!r}, got {class_weight}')
        own['class_weight'] = class_weight
    foreign = [k for k, v in options.items() if v != signature.parameters[k].default]
    if foreign:
        raise ValueError(f'Options of other losses, which do not apply to {loss_type!r}: {foreign}; leave them out')

    loss: Any = create_loss(loss_type, class_counts, **own)
    if smoothing and not soft_targets:
        loss.set_smoothing(smoothing)
    return loss

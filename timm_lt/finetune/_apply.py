"""Freeze a network but for what a method trains, and undo that after training."""

from types import MethodType
from typing import Any

import torch.nn as nn
from torch import Tensor

from .._classifier import find_classifiers
from .._registry import FINETUNING, call_factory
from .._unwrap import plain_model
from ._base import FinetuneMethod
from .lora import LowRankLayer

__all__ = ['apply', 'create_method', 'merge', 'tuned_parameters']


def create_method(name: str, **settings: Any) -> FinetuneMethod:
    """The method of a name such as ``'lora'``, or ``'blocks:2'`` for ``'blocks'`` with ``last=2``.

    Raises:
        ValueError: If the name is unknown or a setting out of range.
        TypeError: If the method has no such setting.
    """
    base, colon, last = str(name).partition(':')
    if colon:
        if base != 'blocks' or not last.isdecimal():
            raise ValueError(f"fine-tuning method {name!r}: a number follows 'blocks' alone, e.g. 'blocks:2'")
        settings = {'last': int(last), **settings}
    return call_factory(FINETUNING.info(base), 'fine-tuning method', **settings)


def apply(model: nn.Module, method: str = 'full', **settings: Any) -> nn.Module:
    """Freeze a timm model but for its classifier and the parameters that a method trains.

    Call it before the optimizer is built and before the model is wrapped or compiled. Frozen BatchNorm layers stay in
    evaluation mode, also after ``model.train()``. Dropout and stochastic depth act as the network has them.

    Args:
        model: A timm model with a classifier; changed in place.
        method: One of :func:`list_finetuning`; ``'blocks:N'`` trains the last N blocks.
        **settings: Settings of the method.

    Returns:
        ``model``.

    Raises:
        ValueError: If the method is unknown or has no meaning for this model. Also if a setting is out of range, or the
            model is tuned already.
        TypeError: If the method has no such setting.

    Examples:
        >>> import timm
        >>> model = apply(timm.create_model('vit_tiny_patch16_224', num_classes=10), 'lora', rank=4)
        >>> sum(p.numel() for p in tuned_parameters(model).values())
        38794
    """
    tuning = create_method(method, **settings)
    heads = find_classifiers(model)
    if not heads:
        raise ValueError(f'{type(model).__name__} has no classifier to train; create it with num_classes > 0')
    if any(_stays_in_evaluation(m) or isinstance(m, LowRankLayer) for m in model.modules()):
        raise ValueError(f'{type(model).__name__} is tuned already; call timm_lt.finetune.merge(model) first')
    tuned = {id(p) for p in tuning.tune(model)}
    tuned |= {id(p) for head in heads for p in head.parameters()}
    for p in model.parameters():
        p.requires_grad_(id(p) in tuned)
    for layer in model.modules():
        if isinstance(layer, nn.modules.batchnorm._BatchNorm):
            if not (tuning.trains_statistics and all(id(p) in tuned for p in layer.parameters())):
                _keep_in_evaluation(layer)
    return model


def merge(model: nn.Module) -> nn.Module:
    """Fold low-rank updates into plain weights and unfreeze the model, also as training has wrapped it.

    The layers of AdaptFormer cannot be folded and stay. The output differs from that before by rounding alone, so
    evaluate after this call.

    Args:
        model: A model after :func:`apply`; changed in place.

    Returns:
        ``model``.
    """
    for layer in plain_model(model).modules():
        if isinstance(layer, LowRankLayer):
            layer.fold()
        if _stays_in_evaluation(layer):
            del vars(layer)['train']
    model.requires_grad_(True)
    return model


def tuned_parameters(model: nn.Module) -> dict[str, Tensor]:
    """The parameters that are trained, by name."""
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


def _keep_in_evaluation(layer: nn.Module) -> None:
    """``train()`` leaves the layer in evaluation mode from now on."""
    layer.eval()
    vars(layer)['train'] = MethodType(_remain, layer)


def _remain(layer: nn.Module, mode: bool = True) -> nn.Module:
    return nn.Module.train(layer, False)


def _stays_in_evaluation(layer: nn.Module) -> bool:
    return 'train' in vars(layer)

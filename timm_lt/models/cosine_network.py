"""Any timm network with a cosine classifier, under one name of timm's registry.

A saved folder names a network of the registry and its arguments. No network of timm has the cosine classifier as an
argument, so a folder of one that was given it (:func:`timm_lt.models.use_cosine_classifier`) names this one.
"""

from typing import Any

import timm
import torch.nn as nn
from timm.models import load_pretrained

from .._classifier import find_classifier
from .._timm_hooks import register_network
from .cosine_classifier import CosineClassifier, use_cosine_classifier

__all__ = ['cosine_network', 'cosine_network_args']


@register_network
def cosine_network(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        network: str = 'resnet18',
        cosine_scale: float = 16.0,
        learnable_scale: bool = False,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        pretrained_model_args: dict[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    """The network ``network`` of timm with a cosine classifier.

    Args:
        pretrained: Load the weights of a saved folder, classifier included; without a folder, timm's weights of
            ``network`` under a fresh classifier.
        pretrained_cfg: Of a saved folder; given by ``timm.create_model``.
        network: Name of the network.
        cosine_scale: See :class:`CosineClassifier`.
        learnable_scale: See :class:`CosineClassifier`.
        pretrained_cfg_overlay, cache_dir, pretrained_model_args: Given by ``timm.create_model``.
        **kwargs: Arguments of ``network``.
    """
    saved = isinstance(pretrained_cfg, dict) and pretrained_cfg.get('source') in ('local-dir', 'hf-hub')
    model = timm.create_model(
        network, pretrained=pretrained and not saved, pretrained_cfg_overlay=pretrained_cfg_overlay,
        cache_dir=cache_dir, **kwargs)
    use_cosine_classifier(model, cosine_scale, learnable_scale)
    model.pretrained_cfg = model.default_cfg = {
        **model.pretrained_cfg, **(pretrained_cfg if saved else {}), 'architecture': 'cosine_network'}
    if pretrained and saved:
        load_pretrained(
            model, num_classes=model.num_classes, in_chans=kwargs.get('in_chans', 3), cache_dir=cache_dir)
    return model


def cosine_network_args(model: nn.Module) -> dict[str, Any]:
    """Arguments that rebuild a network of timm which :func:`use_cosine_classifier` has changed; empty for others."""
    head = find_classifier(model)
    if not isinstance(head, CosineClassifier):
        return {}
    return {
        'network': model.pretrained_cfg['architecture'], 'cosine_scale': head.initial_scale,
        'learnable_scale': head.log_scale is not None}

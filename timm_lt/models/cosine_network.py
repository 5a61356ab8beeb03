"""Any timm network with a cosine classifier, under one name of timm's registry.

A saved folder names a network of the registry and its arguments. No network of timm has the cosine classifier as an
argument. A folder of a network from :func:`timm_lt.models.use_cosine_classifier` therefore names this one.
"""

import functools
from typing import Any

import timm
import torch.nn as nn

from .._classifier import find_classifier
from .._timm_hooks import register_network
from ._saved import is_saved, name_and_load
from ._subclass import NetworkMixin, subclass
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
        pretrained: Load the weights of a saved folder, classifier included. Without a folder, load timm's weights of
            ``network`` under a new classifier.
        pretrained_cfg: Of a saved folder; given by ``timm.create_model``.
        network: Name of the network.
        cosine_scale: See :class:`CosineClassifier`.
        learnable_scale: See :class:`CosineClassifier`.
        pretrained_cfg_overlay, cache_dir, pretrained_model_args: Given by ``timm.create_model``.
        **kwargs: Arguments of ``network``. Without a classifier (``num_classes=0``, ``features_only=True``) it is the
            network itself; ``reset_classifier`` gives a fresh cosine classifier.

    Raises:
        ValueError: If the classifier is not one linear layer.
    """
    saved = is_saved(pretrained_cfg)
    create = functools.partial(
        timm.create_model, network, pretrained_cfg_overlay=pretrained_cfg_overlay, cache_dir=cache_dir, **kwargs)
    if kwargs.get('features_only'):  # these have no classifier
        return create(pretrained=pretrained, pretrained_cfg=pretrained_cfg if saved else None)
    model: Any = create(pretrained=pretrained and not saved)
    plain_class: type = type(model)
    model.__class__ = subclass(_CosineReset, plain_class)
    model.cosine_options = {'scale': cosine_scale, 'learnable': learnable_scale}
    if model.num_classes > 0:
        use_cosine_classifier(model, **model.cosine_options)
    return name_and_load(
        model, 'cosine_network', pretrained_cfg, pretrained=pretrained, in_chans=kwargs.get('in_chans', 3),
        cache_dir=cache_dir)


class _CosineReset(NetworkMixin):
    """Base class, before that of timm, of a network whose fresh classifiers are cosine classifiers."""

    cosine_options: dict[str, Any]

    def reset_classifier(self: Any, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """A fresh cosine classifier; none for ``num_classes`` 0. Further arguments are those of timm's network."""
        network: Any = super()
        network.reset_classifier(num_classes, *args, **kwargs)
        if num_classes > 0:
            use_cosine_classifier(self, **self.cosine_options)


def cosine_network_args(model: nn.Module) -> dict[str, Any]:
    """Arguments that rebuild a network of timm which :func:`use_cosine_classifier` has changed; empty for others."""
    head = find_classifier(model)
    if not isinstance(head, CosineClassifier) or isinstance(model, _CosineReset):  # that one has its arguments
        return {}
    config: Any = model.pretrained_cfg
    return {
        'network': config['architecture'], 'cosine_scale': head.initial_scale,
        'learnable_scale': head.log_scale is not None}

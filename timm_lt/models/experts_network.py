"""A residual network with several experts: copies of its last stage and classifier on a common trunk.

Papers: X. Wang et al., "Long-tailed Recognition by Routing Diverse Distribution-Aware Experts", ICLR 2021,
https://arxiv.org/abs/2010.01809 (the network); E. Sanchez Aimar et al., "Balanced Product of Calibrated Experts for
Long-Tailed Recognition", CVPR 2023, https://arxiv.org/abs/2206.05260 (the average of the logits).
Source: written from the papers.
Differs from the papers / official code: the experts keep the width of the network, as in BalPoE. There is no router.
"""

from typing import Any, NamedTuple

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._timm_hooks import register_network
from .._validate import check_range, check_whole
from ._saved import is_saved, name_and_load
from ._subclass import NetworkMixin, subclass

__all__ = ['ExpertsClassifier', 'ExpertsModel', 'ExpertsOutput', 'experts_network']


class ExpertsClassifier(nn.Module):
    """Classifiers of K experts, each on its own part of the features; the result is the mean of their logits.

    Args:
        in_features: Length K x D of the features of all experts.
        num_classes: Classes C.
        num_experts: Experts K.
        cosine_scale: Scale of cosine classifiers without bias; None: linear classifiers.
    """

    def __init__(
            self, in_features: int, num_classes: int, num_experts: int, cosine_scale: float | None = None,
            **dd: Any,
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.scale = 1.0 if cosine_scale is None else float(cosine_scale)
        self.cosine = cosine_scale is not None
        bound = (in_features // num_experts) ** -0.5  # as of torch's linear layers
        self.weight = nn.Parameter(
            torch.empty(num_experts, num_classes, in_features // num_experts, **dd).uniform_(-bound, bound))
        self.bias = None if self.cosine else nn.Parameter(
            torch.empty(num_experts, num_classes, **dd).uniform_(-bound, bound))

    def expert_logits(self, features: Tensor) -> Tensor:
        """Logits of each expert, (B, K, C), of features (B, K x D)."""
        features = features.unflatten(1, (self.num_experts, -1))
        weight: Tensor = self.weight
        if self.cosine:
            features, weight = F.normalize(features, dim=2), F.normalize(weight, dim=2)
        logits = self.scale * torch.einsum('bkd,kcd->bkc', features, weight)
        return logits if self.bias is None else logits + self.bias

    def forward(self, features: Tensor) -> Tensor:
        return self.expert_logits(features).mean(1)


class ExpertStage(nn.Module):
    """Copies of a stage side by side; their features are joined along the channels."""

    def __init__(self, experts: list[nn.Module]) -> None:
        super().__init__()
        self.experts = nn.ModuleList(experts)

    def forward(self, x: Tensor) -> Tensor:
        features = []
        for expert in self.experts:
            features.append(expert(x))
        return torch.cat(features, dim=1)


class _Experts(NetworkMixin):
    """Base class, before that of timm, of a network whose fresh classifiers are those of experts."""

    experts_options: dict[str, Any]

    def reset_classifier(self: Any, num_classes: int, *args: Any, **kwargs: Any) -> None:
        """Fresh classifiers of all experts; none for ``num_classes`` 0."""
        network: Any = super()
        network.reset_classifier(num_classes, *args, **kwargs)
        if num_classes > 0:
            old = self.fc
            fresh = ExpertsClassifier(
                old.in_features, num_classes, **self.experts_options, device=old.weight.device, dtype=old.weight.dtype)
            self.fc = fresh.train(self.training)


@register_network
def experts_network(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        network: str = 'resnet32_cifar',
        num_experts: int = 3,
        cosine_scale: float | None = None,
        num_classes: int | None = None,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        pretrained_model_args: dict[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    """The residual network ``network`` of timm with copies of its last stage and classifier.

    The features are those of all experts, one after the other. The logits are the mean of the experts' logits.

    Args:
        pretrained: Load the weights of a saved folder. Without a folder, load timm's weights of ``network``, the same
            last stage for each expert, under new classifiers.
        pretrained_cfg: Of a saved folder; given by ``timm.create_model``.
        network: Name of the network, a ResNet of this package or of timm (ResNeXt, SE-ResNet, ... too).
        num_experts: Experts K, >= 1.
        cosine_scale: Scale of cosine classifiers; None: linear classifiers.
        num_classes: Classes C; None: those of the network.
        pretrained_cfg_overlay, cache_dir, pretrained_model_args: Given by ``timm.create_model``.
        **kwargs: Arguments of ``network``.

    Raises:
        ValueError: If the network does not end with a stage, a pooling and one linear classifier.
    """
    check_whole('num_experts', num_experts, 1)
    if cosine_scale is not None:
        check_range('cosine_scale', cosine_scale, 0, low_open=True)
    if kwargs.get('features_only'):
        raise ValueError('experts_network has no features_only; use its forward_intermediates()')
    saved = is_saved(pretrained_cfg)
    if num_classes is not None:
        kwargs['num_classes'] = num_classes
    networks: list[Any] = [
        timm.create_model(
            network, pretrained=pretrained and not saved, pretrained_cfg_overlay=pretrained_cfg_overlay,
            cache_dir=cache_dir, **kwargs)
        for _ in range(num_experts)]  # each with its own random weights
    model = networks[0]
    stage = _last_stage(model, network)
    copies: list[nn.Module] = [getattr(each, stage) for each in networks]
    setattr(model, stage, nn.Sequential(ExpertStage(copies)))  # one block for gradient checkpointing
    plain_class: Any = type(model)
    model.__class__ = subclass(_Experts, plain_class)
    model.experts_options = {'num_experts': num_experts, 'cosine_scale': cosine_scale}
    model.num_features *= num_experts
    *stages, last = model.feature_info
    model.feature_info = [*stages, {**last, 'num_chs': last['num_chs'] * num_experts}]
    model.reset_classifier(model.num_classes)
    model.head_hidden_size = model.num_features * model.global_pool.feat_mult()
    return name_and_load(
        model, 'experts_network', pretrained_cfg, pretrained=pretrained, in_chans=kwargs.get('in_chans', 3),
        cache_dir=cache_dir)


def _last_stage(model: Any, network: str) -> str:
    """Name of the stage before the pooling and the classifier of a residual network."""
    info: Any = getattr(model, 'feature_info', None)
    name = info[-1]['module'] if isinstance(info, list) and info else ''
    if not (name.startswith('layer') and hasattr(model, name) and hasattr(model, 'fc')
            and isinstance(model.fc, (nn.Linear, nn.Identity)) and info[-1]['num_chs'] == model.num_features):
        raise ValueError(
            f'{network} has no experts, because it is no residual network whose last stage is followed by pooling and '
            f'one classifier; use resnet32_cifar or another ResNet')
    return name


class ExpertsOutput(NamedTuple):
    """Output of :class:`ExpertsModel` in training.

    Attributes:
        logits: Mean of the experts, (B, C).
        expert_logits: Of each expert, (B, K, C).
    """
    logits: Tensor
    expert_logits: Tensor


class ExpertsModel(nn.Module):
    """A network of :func:`experts_network` that gives the logits of each expert in training.

    Args:
        model: The network; :attr:`model` keeps it for export.

    Raises:
        ValueError: If the network has no experts.

    Examples:
        >>> model = ExpertsModel(timm.create_model('experts_network', network='resnet20_cifar', num_classes=10))
        >>> model(torch.randn(4, 3, 32, 32)).expert_logits.shape
        torch.Size([4, 3, 10])
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        if not isinstance(model, _Experts):
            raise ValueError(f'{type(model).__name__} has no experts; give --experts K, or create experts_network')
        self.model: Any = model

    def forward(self, x: Tensor) -> ExpertsOutput | Tensor:
        if not self.training:
            return self.model(x)
        features = self.model.forward_head(self.model.forward_features(x), pre_logits=True)
        experts = self.get_classifier().expert_logits(features)
        return ExpertsOutput(experts.mean(1), experts)

    def get_classifier(self) -> Any:
        """The classifiers of the experts."""
        return self.model.get_classifier()

    def plain_model(self) -> nn.Module:
        """The network, as it is evaluated and published."""
        return self.model

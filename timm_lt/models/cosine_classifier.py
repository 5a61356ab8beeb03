"""Cosine (normalised) classifier.

Papers: Z. Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019,
https://arxiv.org/abs/1904.05160 (scale 16); K. Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware
Margin Loss", NeurIPS 2019, https://arxiv.org/abs/1906.07413 (scale in the loss).
Implements: ``z_c = scale * <f, w_c> / (|f| |w_c|)``, no bias. The norm of a class vector, which follows the class size
in a long-tailed training set, no longer takes part.
Source: written from the papers.
Differs from the papers / official code: no.
"""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.models import register_notrace_module
from torch import Tensor

from .._classifier import find_classifier, kind_of_classifier, replace_classifier
from .._validate import check_range

__all__ = ['CosineClassifier', 'create_head', 'use_cosine_classifier']


class CosineClassifier(nn.Module):
    """Linear classifier on normalised features and normalised class vectors.

    Args:
        in_features: Length D of a feature vector.
        out_features: Number of classes C.
        scale: Factor on the cosines, > 0. 1 gives plain cosines, which losses with an own scale want (LDAM, GCL).
        learnable: The scale is trained; it is kept positive as the exponential of a parameter.

    Examples:
        >>> head = CosineClassifier(64, 10, scale=16.0)
        >>> head(torch.randn(2, 64)).shape
        torch.Size([2, 10])
    """

    __jit_unused_properties__ = ['scale']  # TorchScript has no property that is a number or a tensor

    def __init__(
            self,
            in_features: int,
            out_features: int,
            scale: float = 16.0,
            learnable: bool = False,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        check_range('scale', scale, 0, low_open=True)
        self.in_features = in_features
        self.out_features = out_features
        self.weight = nn.Parameter(torch.empty(out_features, in_features, device=device, dtype=dtype))
        # code that treats classifiers alike reads `bias`
        self.register_parameter('bias', None)
        self.initial_scale = float(scale)
        self.log_scale = (
            nn.Parameter(torch.full((), math.log(scale), device=device, dtype=dtype)) if learnable else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Random directions of unit length."""
        with torch.no_grad():
            self.weight.copy_(F.normalize(torch.randn_like(self.weight), dim=-1))
            if self.log_scale is not None:
                self.log_scale.fill_(math.log(self.initial_scale))

    @property
    def scale(self) -> float | Tensor:
        return self.initial_scale if self.log_scale is None else self.log_scale.exp()

    def scaled_cosines(self, x: Tensor) -> Tensor:
        """Logits (..., C) of features (..., D)."""
        cosines = F.linear(F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1))
        if self.log_scale is not None:
            return cosines * self.log_scale.exp()
        return cosines * self.initial_scale

    def forward(self, x: Tensor) -> Tensor:
        return self.scaled_cosines(x)

    def extra_repr(self) -> str:
        scale = torch.as_tensor(self.scale).item()
        return (
            f'in_features={self.in_features}, out_features={self.out_features}, scale={scale:g}, '
            f'learnable={self.log_scale is not None}')


@register_notrace_module  # torch.fx cannot follow the number of dimensions
class _ConvCosineClassifier(CosineClassifier):
    """Also takes pooled features (B, D, H, W), because it may replace a 1x1 convolution."""

    def forward(self, x: Tensor) -> Tensor:
        if x.ndim == 4:
            return self.scaled_cosines(x.movedim(1, -1)).movedim(-1, 1)
        return self.scaled_cosines(x)


def create_head(
        in_features: int,
        num_classes: int,
        cosine_scale: float | None = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
) -> nn.Module:
    """Classifier layer of a network: linear, cosine where ``cosine_scale`` is given, or none for ``num_classes`` 0."""
    if num_classes <= 0:
        return nn.Identity()
    if cosine_scale is None:
        return nn.Linear(in_features, num_classes, device=device, dtype=dtype)
    return CosineClassifier(in_features, num_classes, cosine_scale, device=device, dtype=dtype)


def use_cosine_classifier(model: nn.Module, scale: float = 16.0, learnable: bool = False) -> nn.Module:
    """Replace the linear classifier of any timm model by a new cosine classifier.

    Do so before the optimizer is built. ``model.reset_classifier(...)`` afterwards puts the model's own kind of
    classifier back; call this function again after it.

    Checkpoints: the state dict of the changed model loads into a model changed in the same way. A plain timm model
    cannot load it, because no linear layer normalises features. The networks of this package have ``cosine_scale`` as
    an argument. ``timm.create_model('resnet32_cifar', cosine_scale=16.0)`` has the cosine classifier from the start,
    and a saved folder that names the argument rebuilds it. For any other network ``timm.create_model('cosine_network',
    network='resnet18', cosine_scale=16.0)`` does the same.

    Args:
        model: A timm model with one classifier, a linear layer or a 1x1 convolution; changed in place.
        scale: See :class:`CosineClassifier`.
        learnable: See :class:`CosineClassifier`.

    Returns:
        ``model``.

    Raises:
        ValueError: If the model has no classifier, several, or one that is not linear.
    """
    old: Any = find_classifier(model)
    conv = isinstance(old, _ConvCosineClassifier) or (
        isinstance(old, nn.Conv2d) and old.weight.shape == (old.out_channels, old.in_channels, 1, 1))
    if not isinstance(old, (nn.Linear, CosineClassifier)) and not conv:
        raise ValueError(
            f'{type(model).__name__} needs exactly one linear classifier to be replaced by a cosine classifier, '
            f'got {kind_of_classifier(model)}; create it with num_classes > 0 and a single linear head')
    new = (_ConvCosineClassifier if conv else CosineClassifier)(
        old.weight.shape[1], old.weight.shape[0], scale, learnable, device=old.weight.device, dtype=old.weight.dtype)
    replace_classifier(model, old, new)
    return model

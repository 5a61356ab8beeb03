"""tau-normalisation of the classifier's class vectors.

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (4), ``W_c / |W_c|**tau``; the bias is left out.
Source: written from the paper.
Differs from the paper / official code: tau-normalisation of a cosine classifier is refused. Its class vectors have
equal norms, so no prediction would change. Tau-normalisation acts on class scales learnt on top (LWS, MiSLAS), see
:func:`class_norms`.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._classifier import find_classifier, kind_of_classifier
from .._registry import register_posthoc
from .._validate import check_range
from ..models.cosine_classifier import CosineClassifier
from ..models.scaled_classifier import ScaledClassifier
from ._base import PostHocMethod, at_least_float32, tensor_like

__all__ = ['class_norms', 'tau_normalize', 'tau_normalize_logits']


def tau_normalize(classifier: Tensor | nn.Module, tau: float = 1.0) -> Tensor | nn.Module:
    """tau-normalisation of the classifier's weights: ``W_c / |W_c|**tau``; the bias is left out, as in the paper.

    Args:
        classifier: Weights (C, D), or a linear layer or a timm model (its ``get_classifier()``). A module is changed in
            place: weights scaled, bias zero.
        tau: Strength, >= 0; 0 keeps the weights, 1 gives all classes the same norm. Chosen on validation images.

    Returns:
        New weights for a tensor; the same module for a module. A class with zero weights keeps them.

    Raises:
        TypeError: If the module has no linear classifier.
        ValueError: If tau is negative or the weights are not (C, D).
    """
    check_range('tau', tau, 0)
    if isinstance(classifier, Tensor):
        return classifier / _norms(classifier).pow(tau)[:, None].to(classifier.dtype)
    layer = _linear_classifier(classifier)
    with torch.no_grad():
        scale = _norms(layer.weight.flatten(1)).pow(tau).to(layer.weight.dtype)
        layer.weight.copy_(layer.weight / scale.view(-1, *[1] * (layer.weight.ndim - 1)))
        if layer.bias is not None:
            layer.bias.zero_()
    return classifier


def tau_normalize_logits(logits: Tensor, weight: Tensor, bias: Tensor | None = None, tau: float = 1.0) -> Tensor:
    """Logits as the tau-normalised classifier gives them, from those of the classifier: ``(z_c - b_c) / |W_c|**tau``.

    Args:
        logits: Scores of the classifier, (B, C) or (C,).
        weight: Its weights, (C, D), or their norms, (C,).
        bias: Its bias, (C,), or None.
        tau: Strength, >= 0.

    Returns:
        Log-scores, the shape of ``logits``.
    """
    check_range('tau', tau, 0)
    logits = at_least_float32('logits', logits)
    norms = _norms(weight) if weight.ndim == 2 else weight
    for name, values in (('weight', norms), ('bias', bias)):
        if values is not None and values.shape != logits.shape[-1:]:
            raise ValueError(f'{name} is of {values.numel()} classes, the logits of {logits.shape[-1]}')
    if bias is not None:
        logits = logits - bias.detach().to(logits)
    return logits / norms.to(logits).pow(tau)


def class_norms(classifier: nn.Module) -> tuple[Tensor, Tensor | None]:
    """Norm of each class vector and the bias, which tau-normalisation divides by and leaves out.

    A linear layer has the rows of its weight as class vectors. LWS and MiSLAS leave one scale ``f_c`` per class on a
    cosine classifier (:class:`timm_lt.models.ScaledClassifier`). Its weights are ``f_c * s * w_c / |w_c|``, whose norm
    is ``|f_c| * s``. Tau-normalisation then weakens the learnt scales.

    Args:
        classifier: Classifier layer, or the timm model that has it.

    Returns:
        Norms, (C,), 1 for a class vector of zeros; bias, (C,), or None.

    Raises:
        TypeError: If tau-normalisation has no meaning for the classifier. All class vectors of a cosine classifier have
            the same norm, and DisAlign's norms depend on the image.
    """
    layer = _layer_of(classifier)
    if isinstance(layer, ScaledClassifier):
        scale = layer.class_scale.detach()
        if isinstance(layer.classifier, CosineClassifier):
            return _positive(scale.abs() * torch.as_tensor(layer.classifier.scale).detach()), None
        norms, bias = class_norms(layer.classifier)
        return _positive(norms * scale.abs()), None if bias is None else bias * scale
    layer = _linear_classifier(layer)
    return _norms(layer.weight.detach().flatten(1)), None if layer.bias is None else layer.bias.detach()


@register_posthoc('tau_normalize', paper='Kang et al., ICLR 2020', needs=('classifier',))
class TauNormalization(PostHocMethod):
    """tau-normalisation, on the logits that the classifier gave."""

    def needed(self, fitted: Any) -> str | None:
        return 'weight_norms'

    def values(self, logits: Tensor, *, classifier: nn.Module | None = None, **given: Any) -> dict[str, Any]:
        if classifier is None:
            raise ValueError("method 'tau_normalize' needs classifier=, the layer or the model that has it")
        norms, bias = class_norms(classifier)
        return {'weight_norms': norms, 'bias': bias}

    def apply(self, fitted: Any, logits: Tensor) -> Tensor:
        bias = None if fitted.bias is None else tensor_like(fitted.bias, logits)
        return tau_normalize_logits(logits, tensor_like(fitted.weight_norms, logits), bias, fitted.tau)


def _layer_of(classifier: nn.Module) -> nn.Module:
    if not hasattr(classifier, 'get_classifier'):
        return classifier
    layer = find_classifier(classifier)
    if layer is None:
        raise TypeError(
            f'tau-normalisation needs a model with one classifier, got {kind_of_classifier(classifier)}; '
            f'pass the layer, or a model whose get_classifier() returns it')
    return layer


def _linear_classifier(classifier: nn.Module) -> nn.Linear | nn.Conv2d:
    layer = _layer_of(classifier)
    if isinstance(layer, CosineClassifier):
        raise TypeError(
            'tau-normalisation changes no prediction of a cosine classifier, because all its class vectors have the '
            'same norm; use another correction or a linear classifier')
    if not isinstance(layer, (nn.Linear, nn.Conv2d)):
        raise TypeError(
            f'tau-normalisation needs a linear classifier, because it divides each class vector by its norm; '
            f'got {type(layer).__name__}')
    return layer


def _norms(weight: Tensor) -> Tensor:
    """Norm of each row, (C,); 1 for a row of zeros, which no division should change."""
    if weight.ndim != 2:
        raise ValueError(f'classifier weights must have shape (C, D), got {tuple(weight.shape)}')
    norms = torch.linalg.vector_norm(at_least_float32('weight', weight), dim=1)
    return _positive(norms)


def _positive(norms: Tensor) -> Tensor:
    """Norms with 1 for a class vector of zeros, which no division should change."""
    if not bool(norms.isfinite().all()):
        raise ValueError(f'the weights of {int((~norms.isfinite()).sum())} of {len(norms)} classes are not finite')
    return torch.where(norms > 0, norms, 1)

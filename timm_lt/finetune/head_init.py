"""Initial classifier from the features of the frozen network, or from a file."""

from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .._classifier import find_classifier, kind_of_classifier
from ..models.cosine_classifier import CosineClassifier
from ..two_stage.ncm import class_means

__all__ = ['FROM_FEATURES', 'initialize_head', 'read_class_vectors']

FROM_FEATURES = ('class_mean', 'logistic')
_ITERATIONS = 100
_DECAY = 1e-3  # of the logistic regression on a linear classifier, per half squared norm


def initialize_head(
        model: nn.Module,
        how: str,
        features: Tensor | None = None,
        labels: Tensor | None = None,
) -> nn.Module:
    """Set the classifier of a model before it is tuned.

    ``'class_mean'``: the vector of a class is its mean feature, of length 1; the bias is 0. ``'logistic'``: logistic
    regression from there, in which each class has the same weight. Both need features of some images of every class.
    ``FILE.safetensors``: vectors (C, D) from elsewhere, e.g. text features, each scaled to length 1.

    Source: class means and balanced logistic regression as in LIFT, J.-X. Shi et al., ICML 2024,
    https://arxiv.org/abs/2309.10019.

    Args:
        model: A timm model with one linear or cosine classifier; changed in place.
        how: ``'class_mean'``, ``'logistic'`` or the path of a file.
        features: Inputs of the classifier, (N, D), see :func:`timm_lt.two_stage.classifier_inputs`.
        labels: Class of each, (N,).

    Returns:
        ``model``.

    Raises:
        ValueError: If the classifier is of another kind, a class has no feature, or the file does not fit.
    """
    head = find_classifier(model)
    if not isinstance(head, (nn.Linear, CosineClassifier)):
        raise ValueError(
            f'{type(model).__name__} needs one linear or cosine classifier to be initialised, got '
            f'{kind_of_classifier(model)}')
    if how not in FROM_FEATURES:
        _set_vectors(head, read_class_vectors(how, tuple(head.weight.shape)))
        return model
    if features is None or labels is None:
        raise ValueError(f'{how} needs features and labels of training images')
    absent = (labels.bincount(minlength=len(head.weight)) == 0).nonzero().flatten().tolist()
    if absent:
        raise ValueError(f'{how} needs a feature of every class; classes {absent[:10]} have none')
    features, labels = features.to(head.weight.device), labels.to(head.weight.device)
    _set_vectors(head, class_means(features.double(), labels, len(head.weight)))
    if how == 'logistic':
        _fit_logistic(head, features, labels)
    return model


def read_class_vectors(file: str | Path, shape: tuple[int, ...]) -> Tensor:
    """The one tensor of a safetensors file, of shape (C, D).

    Raises:
        ValueError: If the file cannot be read, holds several tensors, or one of another shape.
    """
    try:
        tensors = load_file(str(file))
    except (OSError, SafetensorError) as e:
        raise ValueError(f'{file} cannot be read as safetensors: {e}') from e
    if len(tensors) != 1:
        raise ValueError(f'{file} must hold one tensor, the class vectors, got {sorted(tensors)}')
    vectors = next(iter(tensors.values()))
    if tuple(vectors.shape) != shape:
        raise ValueError(
            f'{file} holds a tensor of shape {tuple(vectors.shape)}; the classifier needs {shape}: classes in label '
            f'order, features of the network')
    return vectors


@torch.no_grad()
def _set_vectors(head: Any, vectors: Tensor) -> None:
    head.weight.copy_(F.normalize(vectors.to(head.weight.device), dim=1))
    if head.bias is not None:
        head.bias.zero_()


def _fit_logistic(head: Any, features: Tensor, labels: Tensor) -> None:
    """Balanced logistic regression on fixed features by L-BFGS, from the present weights on, in float64."""
    weight = head.weight.detach().double().requires_grad_()
    bias = torch.zeros(len(weight), dtype=weight.dtype, device=weight.device, requires_grad=head.bias is not None)
    cosine = isinstance(head, CosineClassifier)
    inputs = F.normalize(features.double(), dim=1) if cosine else features.double()
    class_weight = 1 / labels.bincount(minlength=len(weight)).to(inputs.dtype)
    variables = [weight] if head.bias is None else [weight, bias]
    solver = torch.optim.LBFGS(variables, max_iter=_ITERATIONS, line_search_fn='strong_wolfe')

    def closure() -> Tensor:
        solver.zero_grad()
        logits = F.linear(inputs, F.normalize(weight, dim=1)) * head.scale if cosine else F.linear(inputs, weight, bias)
        loss = F.cross_entropy(logits, labels, class_weight)
        if not cosine:  # the length of a cosine classifier's vectors has no effect
            loss = loss + _DECAY / 2 * weight.square().sum()
        loss.backward()
        return loss

    solver.step(closure)
    with torch.no_grad():
        head.weight.copy_(weight)
        if head.bias is not None:
            head.bias.copy_(bias)

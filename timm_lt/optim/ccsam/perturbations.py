"""CC-SAM on a linear or cosine classifier in closed form, for all classes of a batch at once.

Paper: Z. Zhou et al., "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition", CVPR 2023.
Implements: the radius and the perturbation of each class in stage 1, with the classifier as the perturbed part.
Source: written from the equations.

``f_i`` are the features, and ``r_i`` is the gradient of sample i's loss with respect to its logits. Class c has m_c
samples in the batch. The mean loss of class c has the gradient ``g_c = (1/m_c) * sum_{j in c} r_j f_j^T`` for the
weight, and ``(1/m_c) * sum_{j in c} r_j`` for the bias. The perturbation shifts the logits by ``eps_c f_i``. This shift
and ``|g_c|`` need only products of (B, D) and (B, C) with each other. There is no C x C x D tensor, no loop over
classes and no host synchronisation. A cosine classifier ``s <f, w> / (|f| |w|)`` has ``g_c = (1/m_c) * sum_j a_j
(f_j/|f_j| - u_j w/|w|)^T`` with cosines u and ``a = s r / |w|``. This gradient is orthogonal to w, so the same products
give the numerator ``<f, w + eps>`` and ``|w + eps|**2 = |w|**2 + |eps|**2``.

Differs from the paper / official code: a class with one training image (n_c - 1 = 0) gets the radius of n_c = 2. A
class whose gradient is zero is not perturbed. The official code divides by zero in both cases.
"""

from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._tensors import DTensor

VARIANTS = ('paper', 'released')
_NORM_EPS = 1e-12  # the official code adds it to the norm of the classifier


class HeadPerturbations(Protocol):
    """One perturbation of a classifier per class."""

    def perturbed_logits(self, classifier: nn.Module, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """Logits of each sample under the perturbation of its class, (B, C).

        Differentiable with respect to the features and the parameters of the classifier; perturbations are constants.

        Args:
            classifier: The layer.
            logits: Its output, (B, C).
            features: Its input, (B, D).
            labels: Class of each sample, (B,).
        """


def head_perturbations(
        head: Any, features: Tensor, residuals: Tensor, labels: Tensor, class_counts: Tensor, *,
        scale: float, variant: str,
) -> HeadPerturbations:
    """The perturbation of each class for a linear or cosine classifier, see :func:`class_perturbations`.

    Args:
        head: A layer that :func:`has_closed_form` accepts.
        features, residuals, labels, class_counts, scale, variant: See :func:`class_perturbations`.
    """
    weight, bias = (p.full_tensor() if isinstance(p, DTensor) else p for p in (head.weight, head.bias))
    if isinstance(head, nn.Linear):
        return class_perturbations(
            features, residuals, labels, class_counts, weight, bias, scale=scale, variant=variant)
    return cosine_perturbations(features, residuals, labels, class_counts, weight, head.scale, scale=scale)


def has_closed_form(head: Any) -> bool:
    """Whether the perturbed losses of a classifier are known in closed form: a linear or a fixed-scale cosine layer."""
    if isinstance(head, nn.Linear):
        return type(head).forward is nn.Linear.forward
    return type(head).__name__ == 'CosineClassifier' and head.log_scale is None


@dataclass(frozen=True)
class ClassPerturbations:
    """One perturbation of a linear classifier per class, as factors.

    The perturbation of class c is ``sum_{j in c} weight_scale[j] * outer(residuals[j], features[j])`` for the weight
    and ``sum_{j in c} bias_scale[j] * residuals[j]`` for the bias. Nothing here carries a gradient.

    Attributes:
        features: (N, D), of the joint batch from which the class means are taken.
        residuals: Gradient of each sample's loss with respect to its logits, (N, C).
        labels: (N,), int64.
        weight_scale: (N,), 0 for the samples of a class that is not perturbed.
        bias_scale: (N,).
        weight_radius: Radius ``rho_c`` of each sample's class for the weight, without ``scale``, (N,).
        bias_radius: The same for the bias, (N,); the paper's variant has one radius for both.
    """
    features: Tensor
    residuals: Tensor
    labels: Tensor
    weight_scale: Tensor
    bias_scale: Tensor
    weight_radius: Tensor
    bias_radius: Tensor

    def shift(self, features: Tensor, labels: Tensor) -> Tensor:
        """Change of the logits of each sample under the perturbation of its class, (B, C).

        Linear in ``features``, and differentiable with respect to them only: features flow through the perturbed
        classifier, perturbations are constants.

        Args:
            features: Input of the classifier, (B, D), any samples.
            labels: Class of each sample, (B,); a class absent from ``self.labels`` gets no shift.
        """
        same = labels[:, None] == self.labels
        kernel = features @ self.features.T * self.weight_scale + self.bias_scale
        return (kernel * same) @ self.residuals

    def perturbed_logits(self, classifier: nn.Module, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """See :class:`HeadPerturbations`."""
        return logits + self.shift(features.to(self.features.dtype), labels)


@dataclass(frozen=True)
class CosinePerturbations:
    """One perturbation of a cosine classifier per class, as factors.

    Attributes:
        features: Normalised features of the joint batch, (N, D).
        residuals: Gradients ``a``, (N, C).
        labels: (N,), int64.
        weight_scale: (N,), as in :class:`ClassPerturbations`.
        weight_radius: (N,).
        radial: ``weight_scale * sum_{j in c} a_j u_j``, the component along the class vectors, (N, C).
        eps_norm_2: ``|eps|**2`` of each class vector, (N, C).
    """
    features: Tensor
    residuals: Tensor
    labels: Tensor
    weight_scale: Tensor
    weight_radius: Tensor
    radial: Tensor
    eps_norm_2: Tensor

    def perturbed_logits(self, classifier: Any, logits: Tensor, features: Tensor, labels: Tensor) -> Tensor:
        """See :class:`HeadPerturbations`; ``labels`` must be among ``self.labels``."""
        weight = classifier.weight.to(self.features.dtype)
        unit = F.normalize(features.to(self.features.dtype), dim=1)
        direction = F.normalize(weight.detach(), dim=1)
        same = (labels[:, None] == self.labels).to(unit.dtype)
        row = same.argmax(1)  # any sample of the same class, because the stored values are per class
        kernel = same * self.weight_scale
        radial = self.radial[row]
        cosines = unit @ direction.T
        numerator = unit @ weight.T + (kernel * (unit @ self.features.T)) @ self.residuals - radial * cosines
        # eps is orthogonal to w: their product is 0, but its gradient with respect to w is not
        product = kernel @ (self.residuals * (self.features @ weight.T)) - radial * (direction * weight).sum(1)
        norm_2 = weight.square().sum(1) + 2 * product + self.eps_norm_2[row]
        return classifier.scale * numerator / norm_2.sqrt()


def class_radius(classifier_norm: Tensor, gradient_norm: Tensor, class_counts: Tensor, num_parameters: int) -> Tensor:
    """Radius ``rho_c = (|w| / (2 |g_c|))**1/2 * k**-1/4 * (n_c - 1)**-1/4``; n_c = 1 counts as 2.

    Args:
        classifier_norm: ``|w|``, ().
        gradient_norm: ``|g_c|``, any shape, each > 0.
        class_counts: Training images ``n_c`` that belong to each entry, same shape, floating point.
        num_parameters: ``k = dim(w)``.
    """
    return (classifier_norm / (2 * gradient_norm)).sqrt() * (num_parameters * (class_counts - 1).clamp(min=1)) ** -0.25


@torch.no_grad()
def class_perturbations(
        features: Tensor,
        residuals: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        weight: Tensor,
        bias: Tensor | None = None,
        *,
        scale: float = 1e-6,
        variant: str = 'paper',
) -> ClassPerturbations:
    """The perturbation of each class in a batch, ``eps_c = scale * sqrt(k) * rho_c * g_c / |g_c|``.

    Args:
        features: Input of the classifier, (N, D).
        residuals: Gradient of each sample's own loss (not of the batch mean) with respect to its logits, (N, C).
        labels: Class of each sample, (N,), int64.
        class_counts: Training images of each class, (C,), on the device of the labels.
        weight: (C, D).
        bias: (C,) or None.
        scale: Strength, >= 0; 0 switches the perturbation off. The official code uses 1e-6.
        variant: 'paper': radius and direction jointly over weight and bias. 'released': each tensor has its own norm
            and direction, while ``|w|`` and k stay those of the whole classifier.
    """
    dtype = torch.promote_types(residuals.dtype, torch.float32)
    features, residuals = features.to(dtype), residuals.to(dtype)
    num_parameters = weight.numel()
    classifier_norm_2 = weight.to(dtype).square().sum()
    if bias is not None:
        num_parameters += bias.numel()
        classifier_norm_2 = classifier_norm_2 + bias.to(dtype).square().sum()
    same = (labels[:, None] == labels).to(dtype)
    class_size = same.sum(1)
    residual_products = residuals @ residuals.T * same
    # sum over the pairs of a class of (r_j . r_l)(f_j . f_l), seen from each of its samples
    weight_norm_2 = same @ (residual_products * (features @ features.T)).sum(1) / class_size.square()
    bias_norm_2 = same @ residual_products.sum(1) / class_size.square()
    if bias is None:
        bias_norm_2 = torch.zeros_like(bias_norm_2)
    if variant == 'paper':
        weight_norm_2 = bias_norm_2 = weight_norm_2 + bias_norm_2

    def radius_and_scale(norm_2: Tensor) -> tuple[Tensor, Tensor]:
        return _radius_and_scale(
            norm_2, class_size, _counts_of(class_counts, labels).to(dtype), classifier_norm_2, num_parameters, scale)

    weight_radius, weight_scale = radius_and_scale(weight_norm_2)
    bias_radius, bias_scale = (weight_radius, weight_scale) if variant == 'paper' else radius_and_scale(bias_norm_2)
    if bias is None:
        bias_radius, bias_scale = torch.zeros_like(bias_radius), torch.zeros_like(bias_scale)
    return ClassPerturbations(features, residuals, labels, weight_scale, bias_scale, weight_radius, bias_radius)


@torch.no_grad()
def cosine_perturbations(
        features: Tensor,
        residuals: Tensor,
        labels: Tensor,
        class_counts: Tensor,
        weight: Tensor,
        cosine_scale: float,
        *,
        scale: float = 1e-6,
) -> CosinePerturbations:
    """The perturbation of each class for a cosine classifier; one tensor, so both variants are the same.

    Args:
        features, residuals, labels, class_counts, weight, scale: See :func:`class_perturbations`.
        cosine_scale: Factor of the classifier on the cosines.
    """
    dtype = torch.promote_types(residuals.dtype, torch.float32)
    weight = weight.to(dtype)
    norms = torch.linalg.vector_norm(weight, dim=1)
    unit = F.normalize(features.to(dtype), dim=1)
    residuals = residuals.to(dtype) * (cosine_scale / norms)
    same = (labels[:, None] == labels).to(dtype)
    class_size = same.sum(1)
    radial = same @ (residuals * (unit @ (weight / norms[:, None]).T))
    tangential_2 = same @ (residuals * ((unit @ unit.T * same) @ residuals)) - radial.square()
    tangential_2 = tangential_2.clamp(min=0)
    radius, weight_scale = _radius_and_scale(
        tangential_2.sum(1) / class_size.square(), class_size, _counts_of(class_counts, labels).to(dtype),
        norms.square().sum(), weight.numel(), scale)
    return CosinePerturbations(
        unit, residuals, labels, weight_scale, radius, weight_scale[:, None] * radial,
        weight_scale.square()[:, None] * tangential_2)


def _counts_of(class_counts: Tensor, labels: Tensor) -> Tensor:
    """Training images of the class of each sample, (N,); any number for ignored samples, whose residuals are 0."""
    return class_counts[labels.clamp(0, len(class_counts) - 1)]


def _radius_and_scale(
        norm_2: Tensor,
        class_size: Tensor,
        class_counts: Tensor,
        classifier_norm_2: Tensor,
        num_parameters: int,
        scale: float,
) -> tuple[Tensor, Tensor]:
    """Radius, and the factor on ``sum_{j in c} r_j f_j^T``, for the class of each sample, from ``|g_c|**2``."""
    info = torch.finfo(norm_2.dtype)
    # a smaller square is rounding, which the radius |g|**-1/2 would amplify: such a class is not perturbed
    perturbed = norm_2 > info.tiny / info.eps
    norm = norm_2.where(perturbed, torch.ones_like(norm_2)).sqrt()
    radius = class_radius(classifier_norm_2.sqrt() + _NORM_EPS, norm, class_counts, num_parameters) * perturbed
    return radius, scale * num_parameters ** 0.5 * radius / (norm * class_size)

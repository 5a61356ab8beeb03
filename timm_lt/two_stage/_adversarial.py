"""Adversarial features of CC-SAM's second stage, in closed form for a linear classifier.

Paper: Z. Zhou et al., "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition", CVPR 2023.
Implements: ``f + lambda * df / |df|`` with ``df = grad_f L``. For a linear classifier ``df_i = r_i W``, where r_i is
the gradient of sample i's loss with respect to its logits. For cross-entropy it is ``softmax - onehot``. No second
graph is needed.
Source: written from the equations.
Differs from the paper / official code: a sample or class whose feature gradient is zero is not moved (0/0 there).
"""

import torch
import torch.nn as nn
from torch import Tensor

VARIANTS = ('paper', 'released')


def class_strength(class_counts: Tensor, div: float = 2.0) -> Tensor:
    """Strength of each class in the official code, ``log(n_max / n_c + 0.01) / div``, (C,), float64.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        div: Divisor, > 0; 2 in the official code.
    """
    counts = class_counts.double()
    return (counts.max() / counts + 0.01).log() / div


def feature_gradients(head: nn.Module, features: Tensor, residuals: Tensor) -> Tensor:
    """Gradient of each sample's own loss with respect to its features, (B, D), without a graph.

    Args:
        head: The classifier; for a linear one no graph is made.
        features: Its input, (B, D).
        residuals: Gradient of each sample's own loss with respect to its logits, (B, C).
    """
    if isinstance(head, nn.Linear):
        return residuals @ head.weight.detach().to(residuals.dtype)
    with torch.enable_grad():
        leaf = features.detach().to(residuals.dtype).requires_grad_()
        return torch.autograd.grad(head(leaf), leaf, residuals)[0]


@torch.no_grad()
def adversarial_features(
        features: Tensor,
        gradients: Tensor,
        labels: Tensor,
        *,
        noise: float | Tensor = 1.0,
        variant: str = 'paper',
) -> Tensor:
    """Features moved along the gradient of the loss.

    Args:
        features: Input of the classifier, (B, D).
        gradients: Gradient of each sample's own loss with respect to its features, (B, D).
        labels: Class of each sample, (B,).
        noise: Length of the move: a number, or one for each sample, (B,).
        variant: 'paper': each move has its full length. 'released': the joint norm of a class in the batch divides the
            gradients of its samples. More samples then make each move shorter.

    Returns:
        (B, D), without a graph.
    """
    norm = torch.linalg.vector_norm(gradients, dim=1, keepdim=True)
    if variant == 'released':
        norm = ((labels[:, None] == labels).to(norm.dtype) @ norm.square()).sqrt()
    direction = gradients / norm.where(norm > 0, torch.ones_like(norm))
    length = noise[:, None].to(direction.dtype) if isinstance(noise, Tensor) else noise
    return features + length * direction

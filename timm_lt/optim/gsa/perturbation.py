"""Grouped sharpness: perturbations of the parameters from the gradients of groups of classes.

Paper: Chen et al., "GKP+GSA", CVPR 2026. Direction ``h_k = g_k - (g_k . g / |g|^2) g``, radius
``rho_k = (|theta| / (2 |h_k|))^1/2 d^-1/4 (n_k - 1)^-1/4``, perturbation ``eps_k = Z sqrt(d) rho_k h_k / |h_k|``.
Source: written from the paper; compared with published numbers in ``tests/golden``.

Pure functions on lists of tensors, plain or sharded. No value is read on the host.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .._tensors import global_dot, global_norm, local, scale_, subtract_

Vector = Sequence[Tensor]
DIRECTIONS = ('orthogonal', 'gradient', 'projection')


def gsa_radius(parameter_norm: Tensor, direction_norm: Tensor, num_parameters: int, num_samples: int) -> Tensor:
    """``(|theta| / (2 |h|))^1/2 d^-1/4 (n - 1)^-1/4``; a group of one training image counts as one of two."""
    return (parameter_norm / (2 * direction_norm)).sqrt() * (num_parameters * max(num_samples - 1, 1)) ** -0.25


@dataclass(frozen=True)
class GSAPerturbations:
    """Perturbations of K groups.

    Attributes:
        projected: ``h_k``, K vectors, from the given gradients without ``gradient_scale``.
        radius: ``rho_k``, (K,); 0 where a group has no direction left after the projection.
        perturbation: ``eps_k``, K vectors; zeros where the radius is 0.
    """
    projected: list[list[Tensor]]
    radius: Tensor
    perturbation: list[list[Tensor]]


@torch.no_grad()
def gsa_perturbations(
        group_gradients: Sequence[Vector],
        batch_gradient: Vector,
        parameters: Vector,
        samples_of_group: Sequence[int],
        *,
        Z: float = 1e-2,
        direction: str = 'orthogonal',
        gradient_scale: Sequence[float] | None = None,
        inplace: bool = False,
) -> GSAPerturbations:
    """Direction, radius and perturbation of every group.

    A group whose gradient is a multiple of the batch's is not perturbed, because the projection leaves only rounding.
    This is the case for the only group of a batch.

    Args:
        group_gradients: ``g_k``, K vectors.
        batch_gradient: ``g``.
        parameters: theta, as perturbed; d is their number of elements.
        samples_of_group: Training samples of each group, ``n_k``, K of them.
        Z: Strength.
        direction: ``h_k``: ``'orthogonal'``, ``g_k`` minus its projection on ``g``; ``'gradient'``, ``g_k`` itself;
            ``'projection'``, the projection on ``g``.
        gradient_scale: Factors (K,), > 0, that turn the given gradients into those that the radius is defined by;
            None for 1.
        inplace: Overwrite ``group_gradients`` with the perturbations; ``projected`` is empty then.
    """
    batch_gradient = list(batch_gradient)
    num_parameters = sum(p.numel() for p in parameters)
    parameter_norm = global_norm(parameters)
    squared = global_dot(batch_gradient, batch_gradient)
    rounding = 32 * torch.finfo(batch_gradient[0].dtype).eps
    projected, radii, perturbations = [], [], []
    for k, (g, num_samples) in enumerate(zip(group_gradients, samples_of_group)):
        g = list(g)
        full = global_norm(g)
        share = torch.where(squared > 0, global_dot(g, batch_gradient) / squared, 0.0)
        h = g if inplace else [t.clone() for t in g]
        if direction != 'gradient':
            if direction == 'projection':
                torch._foreach_copy_([local(t) for t in h], [local(t) for t in batch_gradient])
                scale_(h, share)
            else:
                subtract_(h, batch_gradient, share)
        length = global_norm(h)
        exists = length > rounding * full
        length = torch.where(exists, length, 1.0)
        scaled = length if gradient_scale is None else length * gradient_scale[k]
        radius = gsa_radius(parameter_norm, scaled, num_parameters, num_samples)
        # the last term is 0, or NaN for a gradient that overflowed: NaN weights spoil the loss, and the step is skipped
        step = torch.where(exists, Z * num_parameters ** 0.5 * radius / length, 0.0) + 0 * full + 0 * squared
        radii.append(torch.where(exists, radius, 0.0))
        if not inplace:
            projected.append([t.clone() for t in h])
        torch._foreach_mul_([local(t) for t in h], step)
        perturbations.append(h)
    return GSAPerturbations(projected, torch.stack(radii), perturbations)

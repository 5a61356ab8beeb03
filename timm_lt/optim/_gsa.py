"""Grouped sharpness: perturbations of the parameters from the gradients of groups of classes.

Paper: Chen et al., "GKP+GSA", CVPR 2026. Direction ``h_k = g_k - (g_k . g / |g|^2) g``, radius
``rho_k = (|theta| / (2 |h_k|))^1/2 d^-1/4 (n_k - 1)^-1/4``, perturbation ``eps_k = Z sqrt(d) rho_k h_k / |h_k|``.
Source: written from the paper; the released recurrence was written from a description of what that code computes, and
both are compared with published numbers in ``tests/golden``.

Pure functions on lists of tensors, plain or sharded, so that a vector is a list of one. No value is read on the host.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ._tensors import global_dot, global_norm, local, scale_, subtract_

Vector = Sequence[Tensor]
DIRECTIONS = ('orthogonal', 'gradient', 'projection')


def gsa_radius(parameter_norm: Tensor, direction_norm: Tensor, num_parameters: int, num_samples: int) -> Tensor:
    """``(|theta| / (2 |h|))^1/2 d^-1/4 (n - 1)^-1/4``; a group of one training image counts as one of two."""
    return (parameter_norm / (2 * direction_norm)).sqrt() * (num_parameters * max(num_samples - 1, 1)) ** -0.25


@dataclass(frozen=True)
class GSAPerturbations:
    """Perturbations of K groups.

    Attributes:
        projected: ``h_k``, K vectors; taken of the gradients as they were handed over.
        radius: ``rho_k``, (K,); 0 where the group has no direction of its own.
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

    A group whose gradient is a multiple of the batch's (the only group of a batch) has no direction: what is left after
    the projection is rounding, and it is not perturbed.

    Args:
        group_gradients: ``g_k``, K vectors.
        batch_gradient: ``g``.
        parameters: theta, as perturbed; d is their number of elements.
        samples_of_group: Training samples of each group, ``n_k``, K of them.
        Z: Strength.
        direction: ``h_k``: ``'orthogonal'``, what the projection on ``g`` leaves; ``'gradient'``, ``g_k`` itself;
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


def gsa_regulariser(parameter_norm: Tensor, radius: Tensor, samples_of_group: Sequence[int]) -> Tensor:
    """``|theta| / (2 sqrt(n_k - 1) rho_k)``, (K,); 0 where the radius is 0. Reported only: its gradient is not used."""
    samples = torch.tensor([max(n - 1, 1) for n in samples_of_group], dtype=radius.dtype, device=radius.device)
    return torch.where(radius > 0, parameter_norm / (2 * samples.sqrt() * radius.clamp(min=1e-30)), 0.0)


@dataclass(frozen=True)
class ReleasedAscent:
    """What the released form computes in the first pass of a step.

    Attributes:
        ascent: The one perturbation for all groups.
        buffers: Moving average of the gradient of each group, by group; to be kept until the next step.
        gradient_norm, radius: Of each group present, in ascending order, (K,).
        gradient_left: What each group left of the shared gradient, K vectors.
    """
    ascent: list[Tensor]
    buffers: dict[int, list[Tensor]]
    gradient_norm: Tensor
    radius: Tensor
    gradient_left: list[list[Tensor]]


@torch.no_grad()
def released_ascent(
        gradient: Vector,
        buffers: Mapping[int, Vector],
        parameters: Vector,
        share_of_group: Mapping[int, float],
        samples_of_group: Sequence[int],
        *,
        strength: float = 0.1,
        sigma: float = 1.0,
        decay: float = 0.9,
        radius_min: float = 2e-3,
        radius_max: float = 3e-3,
        adaptive: bool = True,
        keep_gradients: bool = False,
) -> ReleasedAscent:
    """The joint perturbation of the released code.

    Groups are gone through in ascending order on one gradient: each subtracts its moving average from what the groups
    before it left, so that the groups are not independent of each other.

    Args:
        gradient: Gradient of the sum of the groups' mean losses, from one backward pass; not changed.
        buffers: Moving averages of earlier steps, by group; not changed.
        parameters: theta.
        share_of_group: Share of the batch of each group present.
        samples_of_group: Training samples of every group.
        strength: C, a factor of the radius.
        sigma: Share of the moving average that is subtracted.
        decay: lambda of the moving average.
        radius_min, radius_max: Bounds of the radius.
        adaptive: Scale gradient and perturbation by |theta|, elementwise.
        keep_gradients: Fill ``gradient_left``.
    """
    parameters, left = list(parameters), [g.clone() for g in gradient]
    size = torch._foreach_abs(parameters)
    num_parameters = sum(p.numel() for p in parameters)
    parameter_norm = global_norm(parameters)
    ascent = [torch.zeros_like(p) for p in parameters]
    after = {k: list(v) for k, v in buffers.items()}
    norms, radii, kept = [], [], []
    for group in sorted(share_of_group):
        if group in after:
            average = after[group]
            after[group] = torch._foreach_add(
                torch._foreach_mul(average, decay), torch._foreach_mul(left, 1 - decay))
            torch._foreach_sub_(left, torch._foreach_mul(average, sigma))
        else:
            after[group] = [g.clone() for g in left]
        direction = list(torch._foreach_mul(size, left)) if adaptive else left
        length = global_norm(direction) + 1e-12
        radius = strength * gsa_radius(parameter_norm, length, num_parameters, samples_of_group[group])
        radius = radius.clamp(radius_min, radius_max)
        step = torch._foreach_mul(direction, share_of_group[group] * num_parameters ** 0.5 * radius / length)
        torch._foreach_add_(ascent, torch._foreach_mul(step, size) if adaptive else step)
        norms.append(length)
        radii.append(radius)
        if keep_gradients:
            kept.append([g.clone() for g in left])
    return ReleasedAscent(ascent, after, torch.stack(norms), torch.stack(radii), kept)

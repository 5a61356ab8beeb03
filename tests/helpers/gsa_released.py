"""Reference of GSA: the recurrence of the released code, and the paper's regularisation term.

Written from a description of that code, and compared with its numbers in ``tests/golden``. The package implements the
paper's form alone.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from timm_lt.optim._tensors import global_norm
from timm_lt.optim.gsa.perturbation import Vector, gsa_radius


def gsa_regulariser(parameter_norm: Tensor, radius: Tensor, samples_of_group: Sequence[int]) -> Tensor:
    """``|theta| / (2 sqrt(n_k - 1) rho_k)``, (K,); 0 where the radius is 0. Its gradient is not used."""
    samples = torch.tensor([max(n - 1, 1) for n in samples_of_group], dtype=radius.dtype, device=radius.device)
    return torch.where(radius > 0, parameter_norm / (2 * samples.sqrt() * radius.clamp(min=1e-30)), 0.0)


@dataclass(frozen=True)
class ReleasedAscent:
    """Values of the first pass of a step.

    Attributes:
        ascent: The one perturbation for all groups.
        buffers: Moving average of the gradient of each group, by group; to be kept until the next step.
        gradient_norm, radius: Of each group present, in ascending order, (K,).
        gradient_left: The shared gradient after each group, K vectors.
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

    Groups work in ascending order on one gradient. Each subtracts its moving average from the rest that the groups
    before it left, so that groups are not independent of each other.

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

"""Grouped knowledge preservation: a quadratic that holds the encoder near the best encoder of each group of classes.

Paper: Chen et al., "GKP+GSA", CVPR 2026. While training on group k
``L_gkp_k = (lambda / 2) sum_(j != k) (1 / |G_j|) sum_i F_ji (theta_i - anchor_ji)^2``, lambda = 100, and the total loss
is ``sum_k [alpha L_gsa_k + (1 - alpha) L_gkp_k]``.
Source: written from the paper; compared with the released code in ``tests/golden``.
Differs from the official code: that one loops over pairs of groups and over parameters in both passes. A weighted sum
of quadratics with diagonal curvature is one such quadratic. It has the curvature ``A = sum_j a_j F_j`` and the centre
``c = sum_j a_j F_j anchor_j / A``. With a constant they give the value and the gradient ``A (theta - c)``. The cost
does not grow with the number of groups. Over all groups ``a_j = lambda (G - 1) / |G_j|``. With one group there is no j
!= k and the penalty is zero (the released default).
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._validate import check_range

__all__ = ['GroupPenalty', 'QuadraticPenalty', 'alpha_schedule']


def alpha_schedule(progress: float, start: float = 0.95, end: float = 0.6) -> float:
    """Weight of the task loss, ``end + (start - end) / 2 * (1 + cos(pi t / T))``.

    Args:
        progress: ``t / T``, the share of training done, in [0, 1].
        start, end: First and last value, in [0, 1]; the paper uses 0.95 and 0.6.
    """
    check_range('start', start, 0, 1)
    check_range('end', end, 0, 1)
    return end + (start - end) / 2 * (1 + math.cos(math.pi * min(max(progress, 0.0), 1.0)))


class QuadraticPenalty:
    """``1/2 sum_i A_i (theta_i - c_i)^2 + constant`` over a list of parameters.

    Args:
        parameters: The parameters theta, kept as references: value and gradient are at their present values.

    Terms are added one at a time, so that two vectors of the size of theta are held at most. They are float32 at least,
    also if theta is, or is later cast to, half precision.

    Examples:
        >>> theta = torch.nn.Parameter(torch.tensor([1.0, 2.0]))
        >>> penalty = QuadraticPenalty([theta])
        >>> penalty.add(2.0, [torch.tensor([1.0, 0.0])], [torch.tensor([0.0, 9.0])])
        >>> penalty.value().item()
        1.0
    """

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.parameters = list(parameters)
        self.curvature, self.centre = ([
            torch.zeros_like(p, dtype=torch.promote_types(p.dtype, torch.float32), requires_grad=False)
            for p in self.parameters] for _ in range(2))
        self.constant = 0.0

    @torch.no_grad()
    def add(self, weight: float, fisher: Sequence[Tensor], anchor: Sequence[Tensor]) -> None:
        """Add ``weight / 2 * sum_i F_i (theta_i - anchor_i)^2``; ``weight`` and F are >= 0."""
        check_range('weight', weight, 0)
        if len(fisher) != len(self.parameters) or len(anchor) != len(self.parameters):
            raise ValueError(
                f'fisher and anchor need one tensor for each of the {len(self.parameters)} parameters, '
                f'got {len(fisher)} and {len(anchor)}')
        if weight == 0:
            return
        for a, c, f, target in zip(self.curvature, self.centre, fisher, anchor):
            f = f.to(device=a.device, dtype=a.dtype) * weight
            target = target.to(device=a.device, dtype=a.dtype)
            total = a + f
            # without curvature the centre has no effect, and stays
            share = torch.where(total > 0, f / total.clamp(min=torch.finfo(a.dtype).tiny), 0.0)
            offset = target - c
            self.constant += 0.5 * float((a * share * offset.square()).sum(dtype=torch.float64))
            c.add_(share * offset)
            a.copy_(total)

    @torch.no_grad()
    def limit(self, most: float) -> float:
        """Cut the curvature of every element to ``most``; returns the share of elements that it was cut for."""
        cut = sum(float((a > most).sum()) for a in self.curvature)
        torch._foreach_clamp_max_(self.curvature, most)
        return cut / max(sum(a.numel() for a in self.curvature), 1)

    @torch.no_grad()
    def value(self) -> Tensor:
        """The penalty at the present parameters, a scalar tensor."""
        if not self.parameters:
            return torch.zeros(())
        offset = torch._foreach_sub(self.parameters, self.centre)
        terms = torch._foreach_mul(self.curvature, torch._foreach_mul(offset, offset))
        return 0.5 * torch.stack([t.sum() for t in terms]).sum() + self.constant

    @torch.no_grad()
    def gradients(self) -> list[Tensor]:
        """``A (theta - c)``, one tensor for each parameter."""
        gradients = torch._foreach_sub(self.parameters, self.centre)
        torch._foreach_mul_(gradients, self.curvature)
        return list(gradients)

    def state_dict(self) -> dict[str, Any]:
        return {
            'curvature': [t.clone() for t in self.curvature],
            'centre': [t.clone() for t in self.centre],
            'constant': self.constant,
        }

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Any]) -> None:
        if [t.shape for t in state['curvature']] != [t.shape for t in self.curvature]:
            raise ValueError('the saved penalty is of another encoder: shapes of the parameters differ')
        for mine, saved in ((self.curvature, state['curvature']), (self.centre, state['centre'])):
            for target, source in zip(mine, saved):
                target.copy_(source)
        self.constant = state['constant']


class GroupPenalty:
    """The penalty with the terms of every group kept apart, for weights of the groups that change.

    It holds 2 G vectors of the size of the encoder, where :class:`QuadraticPenalty` holds two.

    Args:
        parameters: The encoder's parameters.
        fishers: Diagonal Fisher of each group, G lists.
        anchors: Anchor of each group, G lists.
        group_sizes: ``|G_j|``: training samples of each group (classes are the other reading), (G,), each > 0.
        strength: lambda, >= 0; 100 in the paper, 10 in the released code.
    """

    def __init__(
            self,
            parameters: Sequence[Tensor],
            fishers: Sequence[Sequence[Tensor]],
            anchors: Sequence[Sequence[Tensor]],
            group_sizes: Sequence[float] | Tensor,
            strength: float = 100.0,
    ) -> None:
        self.parameters = list(parameters)
        self.fishers = [list(f) for f in fishers]
        self.anchors = [list(a) for a in anchors]
        self.group_sizes = [float(s) for s in group_sizes]
        self.strength = check_range('strength', strength, 0)
        if not len(self.fishers) == len(self.anchors) == len(self.group_sizes):
            raise ValueError(
                f'one Fisher, anchor and size for each group, got {len(self.fishers)}, {len(self.anchors)} and '
                f'{len(self.group_sizes)}')

    @property
    def num_groups(self) -> int:
        return len(self.group_sizes)

    def quadratic(self, weights: Sequence[float] | None = None) -> QuadraticPenalty:
        """``sum_k weights_k L_gkp_k`` as one quadratic.

        Args:
            weights: Weight of each group k that is trained on, (G,), >= 0; None takes 1 for each.
        """
        coefficients = group_coefficients(self.group_sizes, self.strength, weights)
        penalty = QuadraticPenalty(self.parameters)
        for coefficient, fisher, anchor in zip(coefficients, self.fishers, self.anchors):
            penalty.add(coefficient, fisher, anchor)
        return penalty

    def training_on(self, group: int) -> QuadraticPenalty:
        """``L_gkp_k`` while training on one group alone."""
        return self.quadratic([float(k == group) for k in range(self.num_groups)])


def group_coefficients(
        group_sizes: Sequence[float],
        strength: float,
        weights: Sequence[float] | None = None,
) -> list[float]:
    """``a_j`` with ``sum_k weights_k L_gkp_k = 1/2 sum_j a_j sum_i F_ji (theta_i - anchor_ji)^2``: every group but j
    itself pulls towards anchor j."""
    weights = [1.0] * len(group_sizes) if weights is None else [float(w) for w in weights]
    if len(weights) != len(group_sizes):
        raise ValueError(f'weights must have one entry for each of the {len(group_sizes)} groups, got {len(weights)}')
    others = [sum(weights[:j]) + sum(weights[j + 1:]) for j in range(len(weights))]
    return [strength * other / size for other, size in zip(others, group_sizes)]

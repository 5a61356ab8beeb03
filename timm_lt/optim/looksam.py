"""LookSAM: SAM at each k-th step, whose orthogonal part the steps between use again.

Paper: Y. Liu et al., "Towards Efficient and Scalable Sharpness-Aware Minimization", CVPR 2022,
https://arxiv.org/abs/2203.02714
Implements: Algorithm 1: at each k-th step SAM's gradient ``g_s = grad L(theta + rho g / |g|)``, and the part of it
orthogonal to g, ``g_v = g_s - (g . g_s / |g|^2) g``, is kept. The other steps follow ``g + alpha (|g| / |g_v|) g_v``.
Source: written from the paper.
Differs from the paper / official code: no. The layer-wise radius of Look-LayerSAM is not offered.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_range
from ._kept import KeepsVector
from ._tensors import Gradients, global_dot, global_norm, scale_, subtract_
from .sam import SAM


@register_optimizer('looksam', paper='Liu et al., CVPR 2022')
class LookSAM(KeepsVector, SAM):
    """Sharpness-aware minimization at each k-th step, whose direction is reused between (Liu et al. 2022).

    Two passes at each ``every``-th step and one at the others. The direction is one more copy of the parameters, saved
    with the optimizer.

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer.
        alpha: Weight of the reused direction, >= 0; 0 takes plain steps between.
        every: k, >= 1; 1 is SAM.
        options: See :class:`SharpnessAware`, and the options of the base optimizer. ``local_ascent`` is refused.
    """

    combines = True
    vector_key = 'sharpness_direction'

    def __init__(
            self, params: ParamsT, *, rho: float = 0.05, alpha: float = 0.7, every: int = 5, **options: Any,
    ) -> None:
        self.alpha = check_range('alpha', alpha, 0)
        super().__init__(params, rho=rho, every=every, **options)

    def combine(self, params: Sequence[Tensor], first: Gradients) -> None:
        mine = {id(p) for p in self.trained_parameters()}
        found = [
            (p, p.grad.clone(), g) for p, g in zip(params, first)
            if p.grad is not None and g is not None and id(p) in mine]
        plain, direction = [g for _, _, g in found], [g_s for _, g_s, _ in found]
        squared = global_dot(plain, plain)
        subtract_(direction, plain, torch.where(squared > 0, global_dot(direction, plain) / squared, 0.0))
        norm = global_norm(direction)
        scale_(direction, torch.where(norm > 0, 1 / norm, 0.0))  # the steps between need no length
        self.stage_vector([p for p, _, _ in found], direction)

    def extra_gradient(self, grad_scale: Tensor | float | None) -> None:
        """The reused direction, at the steps that are not perturbed."""
        if self._found is not None or not any(self.radii()) or self.epoch < self.start_epoch:
            return
        params = [p for p in self.trained_parameters() if p.grad is not None]
        gradients: list[Any] = [p.grad for p in params]
        subtract_(gradients, self.vector(params), -self.alpha * global_norm(gradients))

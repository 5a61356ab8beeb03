"""GSAM: SAM that also descends along the part of the gradient that SAM's own step leaves out.

Paper: J. Zhuang et al., "Surrogate Gap Minimization Improves Sharpness-Aware Training", ICLR 2022,
https://arxiv.org/abs/2203.08065
Implements: Algorithm 1: with ``g = grad L(theta)`` and ``g_p = grad L(theta + rho g / |g|)`` the step follows
``g_p - alpha g_v``, where ``g_v = g - (g . g_p / |g_p|^2) g_p`` is the part of g orthogonal to g_p.
Source: written from the paper.
Differs from the paper / official code: the radius follows ``rho_schedule`` over the epochs; the paper moves it with the
learning rate. Gradients are those of the joint batch; the official code decomposes those of each process.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_range
from ._tensors import Gradients, global_dot, local
from .sam import SAM


@register_optimizer('gsam', paper='Zhuang et al., ICLR 2022')
class GSAM(SAM):
    """Surrogate gap guided sharpness-aware minimization around any optimizer of timm (Zhuang et al. 2022, Algorithm 1).

    Two passes per step; two extra copies of the parameters while the second one runs.

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer.
        alpha: Weight of the orthogonal part of the gradient, >= 0; 0 is SAM. The official example uses 0.2.
        options: See :class:`SharpnessAware`, and the options of the base optimizer. ``local_ascent`` is refused.
    """

    combines = joint_only = True

    def __init__(self, params: ParamsT, *, rho: float = 0.05, alpha: float = 0.2, **options: Any) -> None:
        self.alpha = check_range('alpha', alpha, 0)
        super().__init__(params, rho=rho, **options)

    def combine(self, params: Sequence[Tensor], first: Gradients) -> None:
        pairs = [(p.grad, g) for p, g in zip(params, first) if p.grad is not None and g is not None]
        perturbed, plain = [g_p for g_p, _ in pairs], [g for _, g in pairs]
        squared = global_dot(perturbed, perturbed)
        share = torch.where(squared > 0, global_dot(plain, perturbed) / squared, 0.0)
        # g_p - alpha (g - share g_p)
        factor = 1 + self.alpha * share
        for g_p, g in pairs:
            local(g_p).mul_(factor.to(g_p.device)).sub_(local(g), alpha=self.alpha)

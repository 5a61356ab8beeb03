"""FriendlySAM: SAM along what the gradient of a batch has beyond the average gradient of recent batches.

Paper: T. Li et al., "Friendly Sharpness-Aware Minimization", CVPR 2024, https://arxiv.org/abs/2403.12350
Implements: Algorithm 1: ``m_t = lambda m_(t-1) + (1 - lambda) g_t``, ``d_t = g_t - sigma m_t``,
``eps = rho d_t / |d_t|``, and the step with the gradient at ``theta + eps``.
Source: written from the paper.
Differs from the paper / official code: m is 0 before the first step, and steps without a perturbation leave it. The
official code subtracts ``sigma m_(t-1)`` and begins with the first gradient. At sigma = 1 both give one direction after
the first step, ``g_t - m_(t-1)``, up to that beginning.
"""

from typing import Any

import torch

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_range
from ._kept import KeepsVector
from ._tensors import local
from .engine import Part
from .sam import SAM


@register_optimizer('friendlysam', paper='Li et al., CVPR 2024')
class FriendlySAM(KeepsVector, SAM):
    """Sharpness-aware minimization along the noise of the batch (Li et al. 2024, Algorithm 1).

    Two passes per step. The average gradient is one more copy of the parameters, saved with the optimizer.

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer. The official run on CIFAR-100
            uses 0.2.
        sigma: Share of the average gradient that is taken off, >= 0; 0 is SAM. The paper uses 1.
        lmbda: Decay of the average per perturbed step, in [0, 1). The official run on CIFAR-100 uses 0.95.
        options: See :class:`SharpnessAware`, and the options of the base optimizer. ``local_ascent`` is refused.
    """

    vector_key = 'average_gradient'

    def __init__(
            self,
            params: ParamsT,
            *,
            rho: float = 0.05,
            sigma: float = 1.0,
            lmbda: float = 0.9,
            **options: Any,
    ) -> None:
        self.sigma = check_range('sigma', sigma, 0)
        self.lmbda = check_range('lmbda', lmbda, 0, 1, high_open=True)
        super().__init__(params, rho=rho, **options)

    def redirect(self, part: Part) -> None:
        last = self.vector(part.params)
        average = [m.mul(self.lmbda).add_(g, alpha=1 - self.lmbda) for m, g in zip(last, part.grads)]
        self.stage_vector(part.params, average)
        torch._foreach_add_([local(g) for g in part.grads], [local(m) for m in average], alpha=-self.sigma)

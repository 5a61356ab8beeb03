"""GNP: a penalty on the norm of the gradient, by a finite difference along the gradient.

Paper: Y. Zhao et al., "Penalizing Gradient Norm for Efficiently Improving Generalization in Deep Learning", ICML 2022,
https://arxiv.org/abs/2202.03599
Implements: the gradient of ``L + lambda |grad L|``, approximated by
``(1 - alpha) grad L(theta) + alpha grad L(theta + rho g / |g|)`` with ``alpha = lambda / rho``.
Source: written from the paper.
Differs from the paper / official code: no.
"""

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_range
from ._tensors import Gradients, local
from .sam import SAM


@register_optimizer('gnp', paper='Zhao et al., ICML 2022')
class GNP(SAM):
    """Penalty on the gradient norm around any optimizer of timm (Zhao et al. 2022).

    Two passes per step; two extra copies of the parameters while the second one runs.

    Args:
        params: Parameters or groups.
        rho: Step of the finite difference, in parameter norm, >= 0; 0 is the base optimizer.
        alpha: Share of the perturbed gradient, in [0, 1]; the strength of the penalty is ``alpha * rho``. 0 is the base
            optimizer, 1 is SAM.
        options: See :class:`SharpnessAware`, and the options of the base optimizer. ``local_ascent`` is refused.
    """

    combines = joint_only = True

    def __init__(self, params: ParamsT, *, rho: float = 0.05, alpha: float = 0.8, **options: Any) -> None:
        self.alpha = check_range('alpha', alpha, 0, 1)
        super().__init__(params, rho=rho, **options)

    def radii(self) -> list[float]:
        return [self.rho if self.alpha > 0 else 0.0]

    def idle_because(self) -> str | None:
        return 'alpha=0' if self.alpha == 0 else super().idle_because()

    def combine(self, params: Sequence[Tensor], first: Gradients) -> None:
        for p, g in zip(params, first):
            if p.grad is not None and g is not None:
                local(p.grad).lerp_(local(g), 1 - self.alpha)

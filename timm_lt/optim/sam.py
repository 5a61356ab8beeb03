"""SAM: step with the gradient at the worst point of a small ball.

Paper: P. Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
https://arxiv.org/abs/2010.01412
Implements: Eq. (2), ``eps = rho g / |g|``, and Algorithm 1.
Source: written from the paper.
Differs from the paper / official code: no.
"""

from typing import Any

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_rho
from .engine import TwoCallForm


@register_optimizer('sam', paper='Foret et al., ICLR 2021')
class SAM(TwoCallForm):
    """Sharpness-aware minimization around any optimizer of timm (Foret et al. 2021, Eq. (2) and Algorithm 1).

    Two passes per step; one extra copy of the parameters while the second one runs. Without any gradient the step is
    the base's. Under DDP the perturbation follows the joint gradient (``local_ascent=True``: each process its own).

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer. The paper uses 0.05.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'sam', lr=0.1, weight_decay=5e-4, rho=0.05)
        >>> loss = optimizer.step(closure)

    :meth:`first_step` and :meth:`second_step` take the same step in two calls.
    """

    def __init__(self, params: ParamsT, *, rho: float = 0.05, **options: Any) -> None:
        self.rho = check_rho(rho)
        super().__init__(params, **options)
        self.warn_if_idle()

    def radii(self) -> list[float]:
        return [self.rho]

    def idle_because(self) -> str | None:
        return 'rho=0' if self.rho == 0 else None

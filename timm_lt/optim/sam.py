"""SAM and ASAM: step with the gradient at the worst point of a small ball.

Papers: P. Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization", ICLR 2021,
https://arxiv.org/abs/2010.01412; J. Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant
Learning of Deep Neural Networks", ICML 2021, https://arxiv.org/abs/2102.11600
Implements: SAM Eq. (2), ``eps = rho g / |g|``, and Algorithm 1; ASAM Eq. (6) with ``T = diag(|theta|) + eta I``,
``eps = rho T^2 g / |T g|``.
Source: written from the papers.
Differs from the paper / official code: ASAM's ``eta`` is 0 unless given (the paper's experiments use 0.01), as in the
adaptive form of the usual PyTorch SAM, and T acts on all parameters; its official code takes T = 1 for biases.
"""

from typing import Any

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_range, check_rho
from ._engine import SharpnessAware


@register_optimizer('sam', paper='Foret et al., ICLR 2021')
class SAM(SharpnessAware):
    """Sharpness-aware minimization around any optimizer of timm.

    Two passes per step; one extra copy of the parameters while the second one runs. Without any gradient the step is
    the base's. Under DDP the perturbation follows the joint gradient (``local_ascent=True``: each process its own).

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer. The paper uses 0.05.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'sam', lr=0.1, weight_decay=5e-4, rho=0.05)
        >>> loss = optimizer.step(closure)
    """

    def __init__(self, params: ParamsT, *, rho: float = 0.05, **options: Any) -> None:
        self.rho = check_rho(rho)
        super().__init__(params, **options)

    def radii(self) -> list[float]:
        return [self.rho]


@register_optimizer('asam', paper='Kwon et al., ICML 2021')
class ASAM(SAM):
    """Adaptive sharpness-aware minimization: the ball is measured relative to the size of each parameter.

    Args:
        params: Parameters or groups.
        rho: Radius, relative, >= 0; 0 is the base optimizer. The paper uses 0.5 (CIFAR-10) and 1 (CIFAR-100).
        eta: Added to |theta|, >= 0, so that a parameter at 0 can be perturbed. The paper's experiments use 0.01.
        adaptive: False is SAM.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.
    """

    def __init__(
            self, params: ParamsT, *, rho: float = 0.5, eta: float = 0.0, adaptive: bool = True, **options: Any,
    ) -> None:
        super().__init__(params, rho=rho, adaptive=adaptive, **options)
        self.eta = self.adaptive_eta = check_range('eta', eta, 0)

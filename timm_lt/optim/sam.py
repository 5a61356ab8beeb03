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
from ._engine import Part, SharpnessAware
from ._tensors import global_norm, local, scale_


@register_optimizer('sam', paper='Foret et al., ICLR 2021')
class SAM(SharpnessAware):
    """Sharpness-aware minimization around any optimizer of timm.

    Two passes per step; one extra copy of the parameters while the second one runs. Without any gradient the step is
    the base's. Under DDP the perturbation follows the joint gradient (``local_ascent=True``: each process its own).

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer. The paper uses 0.05.
        adaptive: Measure the radius relative to each parameter, as ASAM does with ``eta=0``; wants a larger ``rho``.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'sam', lr=0.1, weight_decay=5e-4, rho=0.05)
        >>> optimizer.step(closure)
    """

    def __init__(self, params: ParamsT, *, rho: float = 0.05, adaptive: bool = False, **options: Any) -> None:
        self.rho = check_rho(rho)
        self.adaptive = bool(adaptive)
        self.eta = 0.0
        super().__init__(params, **options)

    def radii(self) -> list[float]:
        return [self.rho]

    def perturb(self, parts: list[Part]) -> None:
        if not self.adaptive:
            return super().perturb(parts)
        for part in parts:
            self._times_t(part)
            norm = global_norm(part.grads)
            self._times_t(part)
            scale_(part.grads, self.scale_of(part.radius, norm))

    def _times_t(self, part: Part) -> None:
        """``g <- T g``, one parameter at a time."""
        for p, g in zip(part.params, part.grads):
            # without eta the sign of T does not matter, neither for |T g| nor for T^2 g
            local(g).mul_(local(p) if self.eta == 0 else local(p).abs().add_(self.eta))


@register_optimizer('asam', paper='Kwon et al., ICML 2021')
class ASAM(SAM):
    """Adaptive sharpness-aware minimization: the ball is measured relative to the size of each parameter.

    Args:
        params: Parameters or groups.
        rho: Radius, relative, >= 0; 0 is the base optimizer. The paper uses 0.5 (CIFAR-10) and 1 (CIFAR-100).
        eta: Added to |theta|, >= 0, so that a parameter at 0 can be perturbed. The paper's experiments use 0.01.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.
    """

    def __init__(self, params: ParamsT, *, rho: float = 0.5, eta: float = 0.0, **options: Any) -> None:
        super().__init__(params, rho=rho, adaptive=True, **options)
        self.eta = check_range('eta', eta, 0)

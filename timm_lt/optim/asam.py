"""ASAM: SAM in a ball that is measured relative to the size of each parameter.

Paper: J. Kwon et al., "ASAM: Adaptive Sharpness-Aware Minimization for Scale-Invariant Learning of Deep Neural
Networks", ICML 2021, https://arxiv.org/abs/2102.11600
Implements: Eq. (6) with ``T = diag(|theta|) + eta I``, ``eps = rho T^2 g / |T g|``.
Source: written from the paper.
Differs from the paper / official code: ``eta`` is 0 unless given, as in the adaptive form of the usual PyTorch SAM; the
paper's experiments use 0.01. T acts on all parameters; the official code takes T = 1 for biases.
"""

from typing import Any

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_range
from .sam import SAM


@register_optimizer('asam', paper='Kwon et al., ICML 2021')
class ASAM(SAM):
    """Adaptive sharpness-aware minimization around any optimizer of timm (Kwon et al. 2021, Eq. (6)).

    Cost and memory are those of SAM.

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

"""Random weight perturbation: the gradient at weights that are moved in a random direction.

Paper: T. Li et al., "Revisiting Random Weight Perturbation for Efficiently Improving Generalization", TMLR 2024,
https://arxiv.org/abs/2404.00357
Implements: a step with ``grad L(theta + eps)`` for one random ``eps`` per step.
Source: written from the paper.
Differs from the paper / official code: ``eps = rho u / |u|`` with ``u ~ N(0, I)``, so that only the direction differs
from SAM's. The paper draws Gaussian noise in proportion to the norm of each filter, and its m-RWP adds the plain
gradient.
"""

from typing import Any

import torch

from .._registry import register_optimizer
from .._types import ParamsT
from .._validate import check_whole
from ._tensors import SavedWeights
from .engine import BatchClosure, Part
from .sam import SAM


@register_optimizer('rwp', paper='Li et al., TMLR 2024')
class RWP(SAM):
    """Random weight perturbation around any optimizer of timm: the control experiment of sharpness-aware minimization.

    A step is one pass at the perturbed weights. The loss, the logits and the statistics of BatchNorm are those of these
    weights. One more copy of the parameters. The direction depends on seed and step alone, so a resumed run draws the
    same. All processes perturb alike if their devices are of one kind.

    Args:
        params: Parameters or groups.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer.
        seed: Of the random directions, >= 0.
        options: See :class:`SharpnessAware`, and the options of the base optimizer. ``adaptive=True`` moves each
            parameter in proportion to its size.
    """

    joint_only = True

    def __init__(self, params: ParamsT, *, rho: float = 0.05, seed: int = 0, **options: Any) -> None:
        self.seed = check_whole('seed', seed, 0)
        super().__init__(params, rho=rho, **options)

    def first_step(self, zero_grad: bool = False) -> None:
        raise TypeError('RWP perturbs before its only pass and has no two-call form; use step(closure)')

    def _gradients(self, closure: Any, radii: list[float], grad_scale: Any) -> Any:
        if radii[0] == 0:
            return super()._gradients(closure, radii, grad_scale)
        if isinstance(closure, BatchClosure) and closure.sharded:
            raise ValueError('RWP is not possible with sharded parameters; use DistributedDataParallel')
        params = [p for p in self.trained_parameters() if p in self.selection]
        with torch.no_grad():
            part = Part(0, radii[0], -1, params, self._directions(params))
            self.perturb([part])
            weights = SavedWeights(params)
        with weights.perturbed(part.params, part.grads):
            return closure.plain_gradients() if isinstance(closure, BatchClosure) else closure()

    def _directions(self, params: list[torch.Tensor]) -> list[torch.Tensor]:
        """``u`` of this step."""
        seed = (self.seed * 2**32 + self._own['step']) % 2**63
        generators = {device: torch.Generator(device).manual_seed(seed) for device in {p.device for p in params}}
        return [torch.randn(p.shape, generator=generators[p.device], dtype=p.dtype, device=p.device) for p in params]

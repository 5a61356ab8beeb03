"""Focal-SAM: the sharpness of rare classes counts more than that of frequent ones.

Paper: S. Li et al., "Focal-SAM: Focal Sharpness-Aware Minimization for Long-Tailed Classification", ICML 2025,
https://arxiv.org/abs/2505.01660
Implements: method section, ``L(theta) + [L_a(theta + eps) - L_a(theta)]`` with ``L_a = (1/B) sum_i a_{y_i} l_i``,
``a_c = s (1 - pi_c)^gamma`` and ``eps = rho g_a / |g_a|``. Every sample is in two parts: with weight ``1 - a_y``
unperturbed, and with ``a_y`` perturbed.
Source: written from the paper.
Differs from the paper / official code: no.
"""

from typing import Any

import torch
from torch import Tensor

from .._registry import register_optimizer
from .._types import ClassCounts, ParamsT
from .._validate import check_class_counts, check_range, check_rho
from ._head_tail import weights_of_classes
from .engine import SharpnessAware


@register_optimizer('focalsam', paper='Li et al., ICML 2025', needs=('class_counts',))
class FocalSAM(SharpnessAware):
    """Focal sharpness-aware minimization around any optimizer of timm (Li et al. 2025, method section).

    The step follows ``grad (L - L_a)(theta) + grad L_a(theta + rho g_a / |g_a|)`` with class weights ``a_c``, in two
    forward and three backward passes. Memory: two extra copies of the parameters.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,), each >= 1.
        rho: Radius of the perturbation, in parameter norm, >= 0; 0 is the base optimizer. The paper's scripts use
            0.3 on CIFAR-100-LT with a ResNet, 0.2 on CIFAR-10-LT.
        gamma: How fast the weight falls with the frequency of a class, >= 0; 0 weighs all classes alike. The scripts
            use 3.2 and 3.
        sharpness: Strength ``s`` of the sharpness term, >= 0; 1 with ``gamma=0`` is SAM. The scripts use 0.8 and 0.5.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'focalsam', lr=0.1, class_counts=counts)
        >>> loss = optimizer.step(timm_lt.optim.BatchClosure(model, criterion, images, target))
    """

    class_aware = True

    def __init__(
            self,
            params: ParamsT,
            class_counts: ClassCounts | None = None,
            *,
            rho: float = 0.3,
            gamma: float = 3.2,
            sharpness: float = 0.8,
            **options: Any,
    ) -> None:
        self.rho = check_rho(rho)
        self.gamma = check_range('gamma', gamma, 0)
        self.sharpness = check_range('sharpness', sharpness, 0)
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        self.num_classes = len(counts)
        self.coefficients = sharpness * (1 - counts / counts.sum()) ** gamma
        super().__init__(params, **options)
        self.warn_if_idle()

    def part_weights(self, labels: Tensor) -> Tensor:
        table = torch.stack([1 - self.coefficients, self.coefficients])
        return weights_of_classes(table, labels, type(self).__name__)

    def radii(self) -> list[float]:
        return [0.0, self.rho]

    def idle_because(self) -> str | None:
        return 'rho=0' if self.rho == 0 else 'sharpness=0' if self.sharpness == 0 else None

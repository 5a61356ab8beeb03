"""CC-SAM, second stage: a robust classifier on adversarial features.

Paper: Z. Zhou et al., "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition", CVPR 2023.
Implements: ``z_adv = h(f + lambda * df / |df|)`` with ``df = grad_f L``, and ``(1 - t/T) * L_S + (t/T) * L_A``; frozen
backbone, class-balanced sampling.
Source: written from the equations; df in closed form, see ``_adversarial.py``.
Differs from the paper / official code: ``variant='released'`` follows the official code. It takes the norm of df over
all samples of a class in the batch. The strength ``log(n_max / n_c + 0.01) / div`` of the class multiplies both the
move and the adversarial loss.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_option, check_range
from ..losses._criterion import sample_losses, statistics
from ._adversarial import VARIANTS, adversarial_features, class_strength, feature_gradients
from ._base import Classifier, SecondStageMethod


@register_second_stage('ccsam', paper='Zhou et al., CVPR 2023', needs=('class_counts',))
class CCSAMSecondStage(SecondStageMethod):
    """Train the classifier on features and, more and more, on adversarial features.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        variant: 'paper': every sample moves along its own gradient by ``noise``; 'released': see above.
        noise: Length lambda of the move, >= 0, in units of the feature norm.
        div: Divisor of the class strength, > 0; 'released' only.
        max_share: Largest share t/T of the adversarial loss, in [0, 1]. The official code caps it at 0.3 on CIFAR-100
            and not on CIFAR-10.
        reset: Start from a new classifier instead of that of the first stage.
    """

    strength: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            variant: str = 'paper',
            noise: float = 1.0,
            div: float = 2.0,
            max_share: float = 1.0,
            reset: bool = False,
    ) -> None:
        super().__init__(class_counts)
        self.variant = check_option('variant', variant, VARIANTS)
        self.noise = check_range('noise', noise, 0)
        self.max_share = check_range('max_share', max_share, 0, 1)
        self.reset = bool(reset)
        check_range('div', div, 0, low_open=True)
        self.register_buffer('strength', class_strength(self.class_counts, div), persistent=False)

    def make_head(self, classifier: Classifier) -> nn.Module:
        self.strength = self.strength.to(classifier.weight.device)
        if self.reset:
            classifier.reset_parameters()
        return classifier

    def share(self, progress: float) -> float:
        """Share of the adversarial loss when ``progress`` of the second stage is over."""
        return min(progress, self.max_share)

    def forward(self, features: Tensor, target: Tensor, criterion: Any, progress: float) -> Tensor:
        share = self.share(progress)
        logits = self.logits(features)
        values, normalizer = sample_losses(criterion, logits, target)
        residuals, = torch.autograd.grad(values.sum(), logits, retain_graph=True)
        residuals = residuals.to(torch.promote_types(residuals.dtype, torch.float32))
        strength = self.strength[target].to(residuals.dtype) if self.variant == 'released' else 1.0
        with torch.autocast(features.device.type, enabled=False):
            gradients = feature_gradients(self.head, features, residuals)
            moved = adversarial_features(
                features, gradients, target, noise=self.noise * strength, variant=self.variant)
        with statistics(criterion, 'hold'):
            adversarial, _ = sample_losses(criterion, self.logits(moved), target)
        total = share * (strength * adversarial).sum() + (1 - share) * values.sum()
        return total / normalizer.to(total.dtype)

"""DisAlign: distribution alignment.

Paper: S. Zhang et al., "Distribution Alignment: A Unified Framework for Long-tail Visual Recognition", CVPR 2021,
https://arxiv.org/abs/2103.16370
Implements: adaptive calibration, ``s_c = sigma(f) * (alpha_c z_c + beta_c) + (1 - sigma(f)) * z_c``, and generalised
re-weighting with class weights ``(1 / pi_c)**rho``, normalised, on the frozen model.
Source: written from the equations.
Differs from the paper / official code: no. The gate ``sigma(f)`` depends on the image, so that the result is no linear
layer: the head stays a module.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_range
from ..losses._criterion import sample_losses
from ._base import Classifier, SecondStageMethod


class DisAlignHead(nn.Module):
    """A frozen classifier, class-wise magnitude and margin, and a gate that mixes calibrated and plain logits.

    Args:
        classifier: The classifier of the first stage.
    """

    def __init__(self, classifier: Classifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.magnitude = nn.Parameter(torch.ones_like(classifier.weight[:, 0]))
        self.margin = nn.Parameter(torch.zeros_like(classifier.weight[:, 0]))
        self.gate = nn.Linear(
            classifier.in_features, 1, device=classifier.weight.device, dtype=classifier.weight.dtype)

    @property
    def weight(self) -> Tensor:
        return self.classifier.weight

    def forward(self, x: Tensor) -> Tensor:
        logits = self.classifier(x)
        confidence = self.gate(x).sigmoid()
        return confidence * (self.magnitude * logits + self.margin) + (1 - confidence) * logits


@register_second_stage('disalign', paper='Zhang et al., CVPR 2021', needs=('class_counts',))
class DisAlign(SecondStageMethod):
    """Calibrate the logits of the frozen classifier under generalised re-weighting; the head stays a module.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        rho: Exponent of the inverse class share in the weights, >= 0; 0 weighs all images alike.
    """

    sampler = 'instance_balanced'
    epochs = 10
    head: DisAlignHead
    reference_weight: Tensor

    def __init__(self, class_counts: ClassCounts, *, rho: float = 1.5) -> None:
        super().__init__(class_counts)
        self.rho = check_range('rho', rho, 0)
        weight = self.class_counts.double().reciprocal() ** rho
        self.register_buffer('reference_weight', weight / weight.mean(), persistent=False)

    def make_head(self, classifier: Classifier) -> nn.Module:
        self.reference_weight = self.reference_weight.to(classifier.weight.device)
        return DisAlignHead(classifier)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [self.head.magnitude, self.head.margin, *self.head.gate.parameters()]

    def forward(self, features: Tensor, target: Tensor, criterion: Any, progress: float) -> Tensor:
        values, _ = sample_losses(criterion, self.logits(features), target)
        weight = self.reference_weight[target].to(values.dtype)
        return (weight * values).sum() / weight.sum()

    def normalizer(self, target: Tensor, criterion: Any) -> Tensor:
        return self.reference_weight[target].sum()

    def finish(self, model: nn.Module) -> bool:
        model.requires_grad_(True)
        return False

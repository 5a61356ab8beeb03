"""Label over-smoothing (LOS).

Paper: S. Sun et al., "Rethinking Classifier Re-Training in Long-Tailed Recognition: Label Over-Smoothing Can Balance",
ICLR 2025.
Implements: the classifier is trained again on the frozen network with smoothing ``delta`` close to 1. The target of a
sample is ``(1 - delta) onehot(y) + delta / C``. No class counts, plain sampling.
Source: written from the paper.
Differs from the paper / official code: no.
"""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_range
from ._base import Classifier, SecondStageMethod


@register_second_stage('los', paper='Sun et al., ICLR 2025', needs=('class_counts',))
class LabelOverSmoothing(SecondStageMethod):
    """Re-initialise the classifier and train it on targets that are nearly uniform.

    Args:
        class_counts: Training images per class, (C,), each >= 1; only their number matters.
        smoothing: Share delta of the uniform distribution in a target, in [0, 1); 0 is plain training.
    """

    sampler = 'instance_balanced'
    epochs = 20
    lr = 5e-4

    def __init__(self, class_counts: ClassCounts, *, smoothing: float = 0.98) -> None:
        super().__init__(class_counts)
        self.smoothing = check_range('smoothing', smoothing, 0, 1, high_open=True)

    def make_head(self, classifier: Classifier) -> nn.Module:
        classifier.reset_parameters()
        return classifier

    def param_groups(self) -> list[dict[str, Any]]:
        # the targets bound the weights themselves
        return [{'params': self.trained_parameters(), 'weight_decay': 0.0}]

    def soft_target(self, target: Tensor) -> Tensor:
        """``(1 - delta) onehot(y) + delta / C``, (B, C)."""
        num_classes = len(self.class_counts)
        return (1 - self.smoothing) * F.one_hot(target, num_classes).float() + self.smoothing / num_classes

    def forward(self, features: Tensor, target: Tensor, criterion: Any, progress: float) -> Tensor:
        return super().forward(features, self.soft_target(target), criterion, progress)

    def normalizer(self, target: Tensor, criterion: Any) -> Tensor:
        return super().normalizer(self.soft_target(target), criterion)

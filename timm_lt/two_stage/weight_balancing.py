"""Weight balancing: weight decay and a bound on the norms of the class vectors.

Paper: S. Alshammari et al., "Long-Tailed Recognition via Weight Balancing", CVPR 2022,
https://arxiv.org/abs/2203.14197
Implements: MaxNorm, ``w_c <- min(1, delta / |w_c|) w_c`` after each step, with strong weight decay and the
class-balanced loss, on the classifier of the first stage.
Source: written from the paper.
Differs from the paper / official code: no. The radius follows the official code,
``delta = min |w| + max_norm (max |w| - min |w|)`` over the class norms of the first stage.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_range
from ..models.cosine_classifier import CosineClassifier
from ._base import Classifier, SecondStageMethod


@register_second_stage('weight_balancing', paper='Alshammari et al., CVPR 2022', needs=('class_counts',))
class WeightBalancing(SecondStageMethod):
    """Continue the classifier with strong weight decay and class vectors inside a ball.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        max_norm: Place of the radius between the smallest (0) and the largest (1) class norm of the first stage, >= 0.
            None: no bound, weight decay alone.
        weight_decay: Of the classifier, >= 0. The official code uses 0.1.
    """

    sampler = 'instance_balanced'
    loss = 'class_balanced'
    epochs = 10
    lr = 0.01
    radius: Tensor

    def __init__(
            self, class_counts: ClassCounts, *, max_norm: float | None = 0.1, weight_decay: float = 0.1) -> None:
        super().__init__(class_counts)
        self.max_norm = None if max_norm is None else check_range('max_norm', max_norm, 0)
        self.weight_decay = check_range('weight_decay', weight_decay, 0)
        self.register_buffer('radius', torch.tensor(torch.inf), persistent=False)

    def make_head(self, classifier: Classifier) -> nn.Module:
        if isinstance(classifier, CosineClassifier):
            raise ValueError(
                'weight balancing bounds the norms of the class vectors, which a cosine classifier ignores; use a '
                'model with a linear classifier')
        norms = classifier.weight.detach().norm(dim=1)
        if self.max_norm is not None:
            self.radius = norms.min() + self.max_norm * (norms.max() - norms.min())
        return classifier

    def param_groups(self) -> list[dict[str, Any]]:
        return [{'params': self.trained_parameters(), 'weight_decay': self.weight_decay}]

    @torch.no_grad()
    def project(self) -> None:
        weight: Any = self.head.weight
        weight.mul_((self.radius / weight.norm(dim=1, keepdim=True).clamp_min(1e-12)).clamp_max(1))

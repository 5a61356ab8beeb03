"""MiSLAS, second stage.

Paper: Z. Zhong et al., "Improving Calibration for Long-Tailed Recognition", CVPR 2021, https://arxiv.org/abs/2104.00466
Implements: label-aware smoothing (Eq. (4), the loss 'las') with learnable class scales, and shift learning on BatchNorm
(Section 3.3). Running means and variances follow the class-balanced batches, while all affine parameters stay frozen.
The first stage is trained with mixup.
Source: written from the paper.
Differs from the paper / official code: several processes average the running statistics after each epoch; the official
code keeps the statistics of one process.
"""

from typing import Any

import torch.nn as nn

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_range
from ..models.scaled_classifier import ScaledClassifier
from ._base import Classifier, SecondStageMethod, fold_scales, follow_batches


@register_second_stage('mislas', paper='Zhong et al., CVPR 2021', needs=('class_counts',))
class MiSLAS(SecondStageMethod):
    """Label-aware smoothing, class scales and shifted BatchNorm statistics; exported as a plain linear layer.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        classifier_lr: Learning rate of the classifier as a share of that of the class scales, >= 0; 0 freezes it.
        shift_batchnorm: Let BatchNorm's running statistics follow the batches. Features then change all the time and
            are not cached.
    """

    loss = 'las'
    epochs = 10
    head: ScaledClassifier

    def __init__(self, class_counts: ClassCounts, *, classifier_lr: float = 0.05, shift_batchnorm: bool = True) -> None:
        super().__init__(class_counts)
        self.classifier_lr = check_range('classifier_lr', classifier_lr, 0)
        self.shift_batchnorm = bool(shift_batchnorm)
        self.caches_features = not self.shift_batchnorm

    def make_head(self, classifier: Classifier) -> nn.Module:
        return ScaledClassifier(classifier)

    def trained_parameters(self) -> list[nn.Parameter]:
        classifier = list(self.head.classifier.parameters()) if self.classifier_lr else []
        return [self.head.class_scale, *classifier]

    def param_groups(self) -> list[dict[str, Any]]:
        scale, *classifier = self.trained_parameters()
        groups: list[dict[str, Any]] = [{'params': [scale]}]
        if classifier:
            groups.append({'params': classifier, 'lr_scale': self.classifier_lr})
        return groups

    def set_mode(self, model: nn.Module) -> None:
        model.eval()
        if self.shift_batchnorm:
            follow_batches(model)

    def finish(self, model: nn.Module) -> bool:
        return fold_scales(model, self.head)

"""Learnable weight scaling (LWS).

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (5) with ``w_c <- f_c * w_c``, where the factors f_c alone are learned, class-balanced.
Source: written from the paper.
Differs from the paper / official code: no; the factor is on the logit, so it scales the bias too, as in the code.
"""

import torch.nn as nn

from .._registry import register_second_stage
from ..models.scaled_classifier import ScaledClassifier
from ._base import Classifier, SecondStageMethod, fold_scales


@register_second_stage('lws', paper='Kang et al., ICLR 2020', needs=('class_counts',))
class LearnableWeightScaling(SecondStageMethod):
    """Learn one factor per class on the frozen classifier; exported as a plain linear layer.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
    """

    head: ScaledClassifier

    def make_head(self, classifier: Classifier) -> nn.Module:
        return ScaledClassifier(classifier)

    def trained_parameters(self) -> list[nn.Parameter]:
        return [self.head.class_scale]

    def finish(self, model: nn.Module) -> bool:
        return fold_scales(model, self.head)

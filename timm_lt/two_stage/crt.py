"""Classifier re-training (cRT).

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Section 4.1: a new classifier on the frozen backbone, trained with class-balanced sampling; no equation.
Source: written from the paper.
Differs from the paper / official code: no.
"""

import torch.nn as nn

from .._registry import register_second_stage
from ._base import Classifier, SecondStageMethod


@register_second_stage('crt', paper='Kang et al., ICLR 2020', needs=('class_counts',))
class ClassifierRetraining(SecondStageMethod):
    """Re-initialise the classifier and train it, class-balanced.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
    """

    def make_head(self, classifier: Classifier) -> nn.Module:
        classifier.reset_parameters()
        return classifier

"""Classifier with one learnable scale per class, which LWS and the second stage of MiSLAS train.

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (5), ``w_c <- f_c * w_c``; the scale f_c multiplies the logit, hence the bias too.
Source: written from the paper.
Differs from the paper / official code: no.
"""

import torch
import torch.nn as nn
from torch import Tensor

from .cosine_classifier import CosineClassifier

__all__ = ['ScaledClassifier']


class ScaledClassifier(nn.Module):
    """A classifier with one learnable factor on the logit of each class.

    Args:
        classifier: Layer whose logits are scaled.
    """

    def __init__(self, classifier: nn.Linear | CosineClassifier) -> None:
        super().__init__()
        self.classifier = classifier
        self.class_scale = nn.Parameter(torch.ones_like(classifier.weight[:, 0]))

    @property
    def weight(self) -> Tensor:
        return self.classifier.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(x) * self.class_scale

    @torch.no_grad()
    def fold(self) -> nn.Linear | None:
        """The linear layer with the factors in its weight and bias; None if the classifier is not linear."""
        if not isinstance(self.classifier, nn.Linear):
            return None
        self.classifier.weight.mul_(self.class_scale[:, None])
        if self.classifier.bias is not None:
            self.classifier.bias.mul_(self.class_scale)
        return self.classifier

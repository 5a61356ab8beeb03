"""Nearest class mean (NCM).

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Section 4.1: an image gets the class whose mean feature is nearest, by cosine or by Euclidean distance; no
equation.
Source: written from the paper.
Differs from the paper / official code: both are written into a plain linear layer with the same predictions. Cosine:
the weight of a class is its mean over the mean's norm, because the feature's norm changes no order. Euclidean: ``argmin
|f - m_c|**2 = argmax f . m_c - |m_c|**2 / 2``. Such logits are scores: their softmax is not calibrated.
"""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_option
from ._base import Classifier, SecondStageMethod

METRICS = ('cosine', 'euclidean')


def class_means(features: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Mean feature of each class, (C, D); 0 for a class without features."""
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, labels, features)
    return sums / labels.bincount(minlength=num_classes).clamp(min=1)[:, None].to(sums.dtype)


@register_second_stage('ncm', paper='Kang et al., ICLR 2020', needs=('class_counts',))
class NearestClassMean(SecondStageMethod):
    """Put the class means of the training features into the classifier; nothing is trained.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        metric: 'cosine', or 'euclidean', which needs a linear classifier with a bias.
    """

    trained = False
    head: Classifier

    def __init__(self, class_counts: ClassCounts, *, metric: str = 'cosine') -> None:
        super().__init__(class_counts)
        self.metric = check_option('metric', metric, METRICS)

    def make_head(self, classifier: Classifier) -> nn.Module:
        if self.metric == 'euclidean' and classifier.bias is None:
            raise ValueError("ncm with metric='euclidean' needs a classifier with a bias; use metric='cosine'")
        return classifier

    @torch.no_grad()
    def fit(
            self,
            features: Tensor,
            labels: Tensor,
            val_features: Tensor | None = None,
            val_labels: Tensor | None = None,
    ) -> dict[str, Any]:
        weight = self.head.weight
        bias: Any = self.head.bias
        means = class_means(features.double(), labels, len(weight))
        weight.copy_(F.normalize(means, dim=1) if self.metric == 'cosine' else means)
        if bias is not None:
            bias.copy_(-means.square().sum(1) / 2) if self.metric == 'euclidean' else bias.zero_()
        return {'metric': self.metric}

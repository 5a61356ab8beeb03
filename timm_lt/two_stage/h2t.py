"""Head-to-tail feature fusion (H2T).

Paper: M. Li et al., "Feature Fusion from Head to Tail for Long-Tailed Visual Recognition", AAAI 2024,
https://arxiv.org/abs/2306.06963
Implements: the fusion of features. A random share rho of the channels of class-balanced images takes the values of
other images. These are as frequent as in the training set. The classifier is trained on the result with the label of
the balanced image.
Source: written from the paper.
Differs from the paper / official code: the second image is drawn from the same class-balanced batch, because no second
batch then passes the network. Class probabilities are in proportion to the training images of the classes present.
Features are fused behind the pooling, which gives the same values as in front of it.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_range
from ._base import SecondStageMethod, follow_batches


@register_second_stage('h2t', paper='Li et al., AAAI 2024', needs=('class_counts',))
class HeadToTail(SecondStageMethod):
    """Train the classifier on balanced images, some of whose features come from frequent classes.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        rho: Share of the feature channels that are replaced, in [0, 1]; 0 trains on balanced images alone.
        shift_batchnorm: Let BatchNorm's running statistics follow the batches, as the official code does. Features then
            change all the time and are not cached.
    """

    epochs = 10
    lr = 0.02

    def __init__(self, class_counts: ClassCounts, *, rho: float = 0.25, shift_batchnorm: bool = True) -> None:
        super().__init__(class_counts)
        self.rho = check_range('rho', rho, 0, 1)
        self.shift_batchnorm = bool(shift_batchnorm)
        self.caches_features = not self.shift_batchnorm

    def set_mode(self, model: nn.Module) -> None:
        model.eval()
        if self.shift_batchnorm:
            follow_batches(model)

    def fuse(self, features: Tensor, target: Tensor) -> Tensor:
        """Features with a share of their channels from other images of the batch, (B, D)."""
        in_batch = torch.bincount(target, minlength=len(self.class_counts))
        weight = self.class_counts[target].double() / in_batch[target]
        donors = torch.multinomial(weight, len(target), replacement=True)
        num_channels = features.shape[1]
        channels = torch.randperm(num_channels, device=features.device)[:int(self.rho * num_channels)]
        fused = features.clone()
        fused[:, channels] = features[donors][:, channels]
        return fused

    def forward(self, features: Tensor, target: Tensor, criterion: Any, progress: float) -> Tensor:
        return super().forward(self.fuse(features, target), target, criterion, progress)

"""Three-view network of balanced contrastive learning (BCL).

Paper: J. Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022,
https://arxiv.org/abs/2207.09052
Implements: Sec. 3.3, the classifier branch and the contrastive branch with class prototypes made of the classifier
weights.
Source: written from the paper.
Differs from the paper / official code: both MLPs have no BatchNorm, so a prototype depends on its class vector alone.
The timm model keeps its classifier; give it a cosine classifier first where one is wanted.
"""

from typing import NamedTuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._validate import check_whole
from ._views import ViewsModel

__all__ = ['BCLModel', 'BCLOutput']


class BCLOutput(NamedTuple):
    """Output of :class:`BCLModel` in training.

    Attributes:
        logits: Of the classifier view, (B, C).
        features: Of the two contrastive views, L2-normalised, (B, 2, D).
        prototypes: Of the classes, L2-normalised, (C, D).
    """
    logits: Tensor
    features: Tensor
    prototypes: Tensor


class BCLModel(ViewsModel):
    """Any timm model with a projection head and a prototype head around it.

    Stacked views (B, 3, ch, H, W), the classifier view first, give a :class:`BCLOutput`. Plain images (B, ch, H, W)
    give plain logits. All views pass the network together, so BatchNorm sees 3B images at once.

    Args:
        model: A timm model with one linear (also as a 1x1 convolution) or cosine classifier. :attr:`model` keeps it for
            export.
        projection_dim: Length D of the contrastive features.
        hidden_dim: Width of the MLPs' hidden layer; None takes the length of the model's features.

    Raises:
        ValueError: If the model has no classifier whose weights prototypes could be made of.

    Examples:
        >>> model = BCLModel(timm.create_model('resnet18', num_classes=10))
        >>> model(torch.randn(4, 3, 3, 32, 32)).features.shape
        torch.Size([4, 2, 128])
    """

    def __init__(self, model: nn.Module, projection_dim: int = 128, hidden_dim: int | None = None) -> None:
        super().__init__(model, 'BCL')
        check_whole('projection_dim', projection_dim, 1)
        dim = self.feature_dim
        self.projection = _mlp(dim, hidden_dim or dim, projection_dim)
        self.prototype_projection = _mlp(dim, hidden_dim or dim, projection_dim)

    def forward(self, x: Tensor) -> BCLOutput | Tensor:
        if x.ndim == 4:
            return self.model(x)
        logits, features = self.logits_and_features(x)
        weight = self.get_classifier().weight.flatten(1)
        contrastive = F.normalize(self.projection(features).float(), dim=1)
        prototypes = F.normalize(self.prototype_projection(weight).float(), dim=1)
        return BCLOutput(logits, contrastive.reshape(2, len(logits), -1).transpose(0, 1), prototypes)


def _mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_features))

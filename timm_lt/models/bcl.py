"""Three-view network of balanced contrastive learning (BCL).

Paper: J. Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022,
https://arxiv.org/abs/2207.09052
Implements: Sec. 3.3, the classifier branch and the contrastive branch with class prototypes made of the classifier
weights.
Source: written from the paper.
Differs from the paper / official code: both MLPs have no BatchNorm, so a prototype depends on its class vector alone.
The timm model keeps its classifier; give it a cosine classifier first where one is wanted.
"""

from typing import Any, NamedTuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._classifier import find_classifier
from .._validate import check_range

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


class BCLModel(nn.Module):
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
        super().__init__()
        check_range('projection_dim', projection_dim, 1)
        weight = getattr(find_classifier(model), 'weight', None)
        if weight is None or weight.ndim not in (2, 4) or weight[0, 0].numel() != 1:
            raise ValueError(
                f'{type(model).__name__} needs exactly one linear classifier for BCL, whose weights give the class '
                f'prototypes; create a timm model with num_classes > 0 and a single linear head')
        self.model: Any = model
        dim = weight.shape[1]
        self.projection = _mlp(dim, hidden_dim or dim, projection_dim)
        self.prototype_projection = _mlp(dim, hidden_dim or dim, projection_dim)

    def forward(self, x: Tensor) -> BCLOutput | Tensor:
        if x.ndim == 4:
            return self.model(x)
        if x.ndim != 5 or x.shape[1] != 3:
            raise ValueError(f'images must be (B, ch, H, W), or (B, 3, ch, H, W) views, got shape {tuple(x.shape)}')
        batch = x.shape[0]
        # view by view: the classifier view of all images first
        views = x.transpose(0, 1).reshape(3 * batch, *x.shape[2:])
        features = self.model.forward_head(self.model.forward_features(views), pre_logits=True)
        classifier = self.model.get_classifier()
        weight = classifier.weight.flatten(1)
        if isinstance(classifier, nn.Conv2d):
            logits = F.linear(features[:batch], weight, classifier.bias)
        else:
            logits = classifier(features[:batch])
        contrastive = F.normalize(self.projection(features[batch:]).float(), dim=1)
        prototypes = F.normalize(self.prototype_projection(weight).float(), dim=1)
        return BCLOutput(logits, contrastive.reshape(2, batch, -1).transpose(0, 1), prototypes)

    def get_classifier(self) -> nn.Module:
        """The classifier of the timm model."""
        return self.model.get_classifier()

    def plain_model(self) -> nn.Module:
        """The timm model without the contrastive heads, as it is evaluated and published."""
        return self.model


def _mlp(in_features: int, hidden: int, out_features: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(in_features, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, out_features))

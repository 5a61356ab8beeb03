"""Three-view network of probabilistic contrastive learning (ProCo).

Paper: C. Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024,
https://arxiv.org/abs/2403.06726
Implements: the classifier branch and the projection head of the representation branch, sizes of the CIFAR code.
Source: written from the paper.
Differs from the paper / official code: no.
"""

from typing import NamedTuple

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._validate import check_whole
from ._views import ViewsModel

__all__ = ['ProCoModel', 'ProCoOutput']


class ProCoOutput(NamedTuple):
    """Output of :class:`ProCoModel` in training.

    Attributes:
        logits: Of the classifier view, (B, C).
        features: Of the two contrastive views, L2-normalised, (B, 2, D).
    """
    logits: Tensor
    features: Tensor


class ProCoModel(ViewsModel):
    """Any timm model with a projection head beside its classifier.

    Stacked views (B, 3, ch, H, W), the classifier view first, give a :class:`ProCoOutput`. Plain images (B, ch, H, W)
    give plain logits. All views pass the network together, so BatchNorm sees 3B images at once.

    Args:
        model: A timm model with one linear (also as a 1x1 convolution) or cosine classifier. :attr:`model` keeps it for
            export.
        projection_dim: Length D of the contrastive features, >= 2.
        hidden_dim: Width of the hidden layer of the projection head, >= 1.

    Raises:
        ValueError: If the model has no single linear classifier.

    Examples:
        >>> model = ProCoModel(timm.create_model('resnet18', num_classes=10))
        >>> model(torch.randn(4, 3, 3, 32, 32)).features.shape
        torch.Size([4, 2, 128])
    """

    def __init__(self, model: nn.Module, projection_dim: int = 128, hidden_dim: int = 512) -> None:
        super().__init__(model, 'ProCo')
        check_whole('projection_dim', projection_dim, 2)
        check_whole('hidden_dim', hidden_dim, 1)
        self.projection = nn.Sequential(
            nn.Linear(self.feature_dim, hidden_dim), nn.BatchNorm1d(hidden_dim), nn.ReLU(inplace=True),
            nn.Linear(hidden_dim, projection_dim))

    def forward(self, x: Tensor) -> ProCoOutput | Tensor:
        if x.ndim == 4:
            return self.model(x)
        logits, features = self.logits_and_features(x)
        contrastive = F.normalize(self.projection(features).float(), dim=1)
        return ProCoOutput(logits, contrastive.reshape(2, len(logits), -1).transpose(0, 1))

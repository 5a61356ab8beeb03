"""Base of the networks that take several views of an image in training."""

from typing import Any

import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._classifier import find_classifier


class ViewsModel(nn.Module):
    """A timm model whose classifier sees the first of three views and whose features are kept of the others.

    Plain images (B, ch, H, W) give plain logits. All views pass the network together, so BatchNorm sees 3B images at
    once.

    Args:
        model: A timm model with one linear (also as a 1x1 convolution) or cosine classifier.
        method: Name of the method, for the message.

    Raises:
        ValueError: If the model has no such classifier.
    """

    def __init__(self, model: nn.Module, method: str) -> None:
        super().__init__()
        weight = getattr(find_classifier(model), 'weight', None)
        if weight is None or weight.ndim not in (2, 4) or weight[0, 0].numel() != 1:
            raise ValueError(
                f'{type(model).__name__} needs exactly one linear classifier for {method}; create a timm model with '
                f'num_classes > 0 and a single linear head')
        self.model: Any = model
        self.feature_dim = weight.shape[1]

    def logits_and_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits of the first view, (B, C), and features of the others, view by view, (2B, D).

        Args:
            x: (B, 3, ch, H, W), the classifier view first.
        """
        if x.ndim != 5 or x.shape[1] != 3:
            raise ValueError(f'images must be (B, ch, H, W), or (B, 3, ch, H, W) views, got shape {tuple(x.shape)}')
        batch = x.shape[0]
        # view by view: the classifier view of all images first
        views = x.transpose(0, 1).reshape(3 * batch, *x.shape[2:])
        features = self.model.forward_head(self.model.forward_features(views), pre_logits=True)
        classifier = self.model.get_classifier()
        if isinstance(classifier, nn.Conv2d):
            logits = F.linear(features[:batch], classifier.weight.flatten(1), classifier.bias)
        else:
            logits = classifier(features[:batch])
        return logits, features[batch:]

    def get_classifier(self) -> Any:
        """The classifier of the timm model."""
        return self.model.get_classifier()

    def plain_model(self) -> nn.Module:
        """The timm model without the contrastive heads, as it is evaluated and published."""
        return self.model

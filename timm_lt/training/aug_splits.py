"""Augmentation splits: the network and the loss that take a clean image with its augmented copies.

Paper: D. Hendrycks et al., "AugMix: A Simple Data Processing Method to Improve Robustness and Uncertainty", ICLR 2020,
https://arxiv.org/abs/1912.02781
"""

from typing import Any, NamedTuple

import torch.nn as nn
from timm.loss import JsdCrossEntropy
from torch import Tensor


class SplitOutput(NamedTuple):
    """Output of :class:`SplitModel` in training.

    Attributes:
        logits: Of the clean images, (B, C).
        splits: Of all splits, the clean one first, (V * B, C).
    """
    logits: Tensor
    splits: Tensor


class SplitModel(nn.Module):
    """A network that passes all splits of a batch together, so that BatchNorm sees V * B images at once.

    Splits (B, V, ch, H, W) give a :class:`SplitOutput`; plain images (B, ch, H, W) give plain logits.

    Args:
        model: A timm model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model: Any = model

    def forward(self, x: Tensor) -> SplitOutput | Tensor:
        if x.ndim == 4:
            return self.model(x)
        logits = self.model(x.transpose(0, 1).flatten(0, 1))
        return SplitOutput(logits[:len(x)], logits)

    def get_classifier(self) -> nn.Module:
        """The classifier of the timm model."""
        return self.model.get_classifier()

    def plain_model(self) -> nn.Module:
        """The timm model, as it is evaluated and published."""
        return self.model


class SplitLoss(nn.Module):
    """timm's ``JsdCrossEntropy`` of a :class:`SplitOutput`.

    Cross-entropy of the clean images, and ``alpha`` times the Jensen-Shannon divergence between the predictions of the
    splits.

    Args:
        num_splits: V, >= 2.
        smoothing: Label smoothing, in [0, 1).
        alpha: Weight of the divergence; the paper's lambda.
    """

    def __init__(self, num_splits: int, smoothing: float = 0.0, alpha: float = 12.0) -> None:
        super().__init__()
        self.loss = JsdCrossEntropy(num_splits=num_splits, alpha=alpha, smoothing=smoothing)

    def forward(self, output: SplitOutput, target: Tensor) -> Tensor:
        return self.loss(output.splits, target)

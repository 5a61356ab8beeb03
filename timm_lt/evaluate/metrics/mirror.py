"""Logits averaged over an image and its mirror image."""

import torch.nn as nn
from torch import Tensor


class MirrorAverage(nn.Module):
    """Mean of a model's logits of images and of their mirror images.

    Args:
        model: Gives logits (B, C) of images (B, C, H, W).
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        return (self.model(images) + self.model(images.flip(-1))) / 2

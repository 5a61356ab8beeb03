"""Losses on a logit for every pixel, as in semantic segmentation."""

from typing import Any

import torch.nn as nn
from torch import Tensor

from .._validate import check_reduction
from ._targets import IGNORE_INDEX

__all__ = ['DenseLoss']


class DenseLoss(nn.Module):
    """A loss on logits (N, C) for logits (B, C, H, W), where every pixel is a sample.

    The class counts of the loss are those of pixels, see :meth:`timm_lt.ClassDistribution.from_masks`. Losses that
    couple the samples of a batch (LADE) couple its pixels. Deferred weights and epochs go to :attr:`criterion`.

    Args:
        criterion: A loss of :func:`timm_lt.create_loss` on logits.
        ignore_index: Label of the pixels that are left out; 255 in most data sets. The label -100 is left out too.

    Raises:
        TypeError: If the loss needs several views.

    Examples:
        >>> loss = DenseLoss(timm_lt.create_loss('balanced_softmax', [90_000, 9_000, 300]))
        >>> loss(torch.randn(2, 3, 8, 8), torch.randint(3, (2, 8, 8))).shape
        torch.Size([])
    """

    def __init__(self, criterion: nn.Module, ignore_index: int = 255) -> None:
        super().__init__()
        if not hasattr(criterion, 'weighted_per_sample') or getattr(criterion, 'views', 1) > 1:
            raise TypeError(
                f'DenseLoss takes a loss of timm_lt.list_losses(), got {type(criterion).__name__}; create it by '
                f'timm_lt.create_loss(NAME, class_counts=counts of pixels)')
        self.criterion: Any = criterion
        self.ignore_index = ignore_index

    def forward(self, logits: Tensor, target: Tensor, reduction: str | None = None) -> Tensor:
        """Loss over all pixels.

        Args:
            logits: (B, C, H, W), or any shape with the classes in dimension 1.
            target: Class indices (B, H, W), int64, or soft targets of the shape of the logits.
            reduction: 'mean' over the pixels that are not left out, 'sum', 'none' -> (B, H, W); None: that of the loss.
        """
        shape = logits.shape[:1] + logits.shape[2:]
        if logits.ndim < 3 or target.shape != (logits.shape if target.is_floating_point() else shape):
            raise ValueError(
                f'logits must be (B, C, H, W) with targets (B, H, W), or soft targets like the logits, got '
                f'{tuple(logits.shape)} and {tuple(target.shape)}')
        logits = logits.movedim(1, -1).flatten(0, -2)
        if target.is_floating_point():
            target = target.movedim(1, -1).flatten(0, -2)
        else:
            target = target.flatten()
            target = target.masked_fill(target == self.ignore_index, IGNORE_INDEX)
        reduction = self.criterion.reduction if reduction is None else check_reduction(reduction)
        values = self.criterion(logits, target, reduction=reduction)
        return values.view(shape) if reduction == 'none' else values

"""BCL: balanced contrastive learning.

Paper: J. Zhu et al., "Balanced Contrastive Learning for Long-Tailed Visual Recognition", CVPR 2022,
https://arxiv.org/abs/2207.09052
Implements: the balanced contrastive loss with class averaging and class complement, and its weighted sum with the
logit-adjusted cross-entropy.
Source: written from the paper.
Differs from the paper / official code: no. Under several processes the contrast set is that of the process.
"""

import functools
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts
from .._validate import check_class_counts, check_range
from ..models.bcl import BCLModel
from ._base import LongTailLoss
from ._targets import check_targets, of_counted_samples
from ._terms import reduce
from .balanced_softmax import logit_adjustment_loss

__all__ = ['balanced_contrastive_loss']


def balanced_contrastive_loss(
        features: Tensor,
        centers: Tensor,
        target: Tensor,
        temperature: float = 0.1,
        reduction: str = 'mean',
) -> Tensor:
    """Supervised contrastive loss in which every class has the same share of the denominator.

    The contrast set of the 2B anchors is the 2B features and the C prototypes. The denominator averages the terms of a
    class (the anchor itself left out, the prototype counted). The numerator averages over the positives. The prototype
    is one of them, so a class with one image is well defined.

    Args:
        features: L2-normalised features of two views, (B, 2, D).
        centers: L2-normalised class prototypes, (C, D).
        target: Class indices, (B,); samples with -100 are left out.
        temperature: Divisor of the similarities, > 0.
        reduction: 'none' -> (B,), the mean of a sample's two anchors; 'mean' or 'sum' -> ().

    Returns:
        Loss in nats.
    """
    contrast = functools.partial(_contrastive_values, centers, temperature)
    values = of_counted_samples(contrast, target, features.flatten(1))
    return reduce(values, reduction, target)


def _contrastive_values(centers: Tensor, temperature: float, features: Tensor, target: Tensor) -> Tensor:
    """Contrastive loss of each sample, (B,), the mean over its two anchors; ``features`` are (B, 2 D)."""
    batch, num_classes = features.shape[0], centers.shape[0]
    features = features.view(batch, 2, -1)
    anchors = features.transpose(0, 1).reshape(2 * batch, -1)
    label = target.repeat(2)
    contrast = torch.cat([anchors, centers])
    contrast_label = torch.cat([label, torch.arange(num_classes, device=target.device)])
    size = torch.ones(num_classes, dtype=anchors.dtype, device=target.device)
    size.index_add_(0, label, torch.ones_like(anchors[:, 0]))

    similarity = anchors @ contrast.T / temperature
    itself = torch.zeros_like(similarity, dtype=torch.bool)
    itself.fill_diagonal_(True)
    positive = (label[:, None] == contrast_label[None, :]) & ~itself
    num_positive = (size - 1)[label]
    # 1 / |class| as a shift of the logits; the anchor does not count in its own class
    log_size = torch.where(positive, num_positive.log()[:, None], size.log()[contrast_label][None, :])
    log_denominator = torch.logsumexp((similarity - log_size).masked_fill(itself, float('-inf')), dim=1)
    log_numerator = (similarity * positive).sum(1) / num_positive
    return (log_denominator - log_numerator).view(2, batch).mean(0)


@register_loss('bcl', paper='Zhu et al., CVPR 2022', needs=('class_counts',), soft_targets=False)
class BCLLoss(LongTailLoss):
    """``classification_weight * logit-adjusted cross-entropy + contrastive_weight * balanced contrastive loss``.

    Takes what :class:`timm_lt.models.BCLModel` gives for three views: (logits, features, prototypes). Plain logits, as
    in evaluation, give the first part alone, in evaluation mode only.

    The contrastive part couples the samples of a batch, because it compares the anchors of a sample with all others.
    The mean of the values is the loss, but the value of a sample changes with its batch. Targets must be class indices,
    because positives are found by class. Class weights are not taken.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        classification_weight: Factor a of the cross-entropy, >= 0. The paper's code uses 2.0 on CIFAR.
        contrastive_weight: Factor b of the contrastive loss, >= 0; 0 switches it off. That code uses 0.6.
        temperature: Divisor of the similarities, > 0.
        tau: Strength of the logit adjustment, >= 0.
        reduction: See :class:`LongTailLoss`.
    """

    soft_targets = False
    takes_class_weight = False
    views = 3
    couples_samples = True

    log_prior: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            classification_weight: float = 2.0,
            contrastive_weight: float = 0.6,
            temperature: float = 0.1,
            tau: float = 1.0,
            reduction: str = 'mean',
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        super().__init__(reduction, num_classes=len(counts))
        self.classification_weight = check_range('classification_weight', classification_weight, 0)
        self.contrastive_weight = check_range('contrastive_weight', contrastive_weight, 0)
        self.temperature = check_range('temperature', temperature, 0, low_open=True)
        self.tau = check_range('tau', tau, 0)
        self.register_buffer('log_prior', (counts / counts.sum()).log())

    @classmethod
    def wrap_model(cls, model: nn.Module) -> nn.Module:
        """A :class:`timm_lt.models.BCLModel` around the model."""
        return BCLModel(model)

    def set_class_weight(self, weight: Any) -> None:
        if weight is not None:
            raise ValueError('BCLLoss takes no class weights: its contrastive part balances the classes already')
        super().set_class_weight(None)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """The classification part of each sample, (B,)."""
        return self.classification_weight * logit_adjustment_loss(
            logits, target, self.log_prior, self.tau, reduction='none')

    def forward(self, output: Any, target: Tensor, reduction: str | None = None) -> Tensor:
        if isinstance(output, Tensor):
            if self.training:
                raise TypeError(
                    'BCLLoss needs (logits, features, prototypes) in training; wrap the model in '
                    'timm_lt.models.BCLModel and feed three views per image, (B, 3, ch, H, W)')
            return super().forward(output, target, reduction)
        logits, features, prototypes = output
        check_targets(logits, target, self.soft_targets, type(self).__name__, self.num_classes)
        self._check_values(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
            self._follow(logits.device)
            values = of_counted_samples(
                functools.partial(self._both_parts, prototypes.to(dtype)), target, logits.to(dtype), features.to(dtype))
            return self._reduced(values, target, reduction)

    def _both_parts(self, prototypes: Tensor, logits: Tensor, features: Tensor, target: Tensor) -> Tensor:
        """Classification and contrastive part of each sample, (B,)."""
        loss = self.per_sample(logits, target)
        if not self.contrastive_weight:
            return loss
        return loss + self.contrastive_weight * balanced_contrastive_loss(
            features, prototypes, target, self.temperature, reduction='none')

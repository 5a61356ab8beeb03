"""ProCo: probabilistic contrastive learning.

Paper: C. Du et al., "Probabilistic Contrastive Learning for Long-Tailed Visual Recognition", TPAMI 2024,
https://arxiv.org/abs/2403.06726
Implements: the contrastive loss against von Mises-Fisher classes in closed form, and its sum with the logit-adjusted
cross-entropy.
Source: written from the paper.
Differs from the paper / official code: the statistics of a batch count from the next step on, not in its own loss.
Further passes, accumulation and skipped steps therefore agree. The official recurrence of the Bessel functions loses
its accuracy beyond a concentration of about 1,000. This one does not.
"""

from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_range, check_whole
from ..models.proco import ProCoModel
from ._base import LongTailLoss
from ._criterion import several_processes
from ._targets import check_targets, ignored_samples, with_valid_labels
from ._von_mises_fisher import log_expected_similarity
from .balanced_softmax import logit_adjustment_loss

__all__ = ['concentration_of', 'proco_logits']

MAX_CONCENTRATION = 1e5
INITIAL_LENGTH = 0.9  # of the mean of a class without features yet


def concentration_of(mean: Tensor) -> Tensor:
    """Concentration of von Mises-Fisher classes from their mean features, (C,), clamped to 1e5 (ProCo's Eq. for kappa).

    ``kappa = D R / (1 - R**2)`` for a mean of length R, as in the official code.

    Args:
        mean: Mean of the unit features of each class, (C, D).
    """
    length = mean.norm(dim=1).clamp(max=1)
    return (mean.shape[1] * length / (1 - length ** 2)).clamp(max=MAX_CONCENTRATION)


def proco_logits(features: Tensor, mean: Tensor, temperature: float = 0.1) -> Tensor:
    """Logarithm of the expected similarity of each feature to each class, (B, C), float64.

    Args:
        features: L2-normalised, (B, D).
        mean: Mean feature of each class, (C, D).
        temperature: Divisor of the similarities, > 0.
    """
    return log_expected_similarity(features, F.normalize(mean, dim=1), concentration_of(mean), temperature)


@register_loss('proco', paper='Du et al., TPAMI 2024', needs=('class_counts',), soft_targets=False)
class ProCoLoss(LongTailLoss):
    """Logit-adjusted cross-entropy, plus that of the probabilistic contrastive logits of two further views.

    Takes what :class:`timm_lt.models.ProCoModel` gives for three views: (logits, features). Plain logits, as in
    evaluation, give the first part alone, in evaluation mode only.

    Each class is a von Mises-Fisher distribution of features. Its mean comes from the features of this epoch and the
    last one; :meth:`set_epoch` begins an epoch. The sums are buffers that are saved and resumed. A commit sums over the
    processes of the default group, see :meth:`statistics`. A class without features yet has a random mean. Targets must
    be class indices, because a feature belongs to one class.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        contrastive_weight: Factor of the contrastive loss, >= 0; 0 switches it off. The paper's code uses 1.
        temperature: Divisor of the similarities, > 0.
        tau: Strength of the logit adjustment of both parts, >= 0.
        feature_dim: Length D of the contrastive features, >= 2.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    soft_targets = False
    views = 3
    view_scale = (0.08, 1.0)

    log_prior: Tensor
    initial_mean: Tensor
    feature_sums: Tensor
    last_sums: Tensor
    pending: Tensor
    epoch: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            contrastive_weight: float = 1.0,
            temperature: float = 0.1,
            tau: float = 1.0,
            feature_dim: int = 128,
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        super().__init__(reduction, class_weight, len(counts))
        self.contrastive_weight = check_range('contrastive_weight', contrastive_weight, 0)
        self.temperature = check_range('temperature', temperature, 0, low_open=True)
        self.tau = check_range('tau', tau, 0)
        self.feature_dim = check_whole('feature_dim', feature_dim, 2)
        self.register_buffer('log_prior', (counts / counts.sum()).log())
        options: Any = {'dtype': torch.float64, 'device': 'cpu'}
        generator = torch.Generator('cpu').manual_seed(0)  # the same on all processes
        initial = torch.randn(len(counts), feature_dim, generator=generator, **options)
        self.register_buffer('initial_mean', INITIAL_LENGTH * F.normalize(initial, dim=1), persistent=False)
        # sums of features and, in the last column, their number: of this epoch, the last one, and not yet committed
        sums = torch.zeros(len(counts), feature_dim + 1, **options)
        self.register_buffer('feature_sums', sums)
        self.register_buffer('last_sums', sums.clone())
        self.register_buffer('pending', sums.clone(), persistent=False)
        self.register_buffer('epoch', torch.zeros((), dtype=torch.int64, device='cpu'))

    @classmethod
    def wrap_model(cls, model: nn.Module) -> nn.Module:
        """A :class:`timm_lt.models.ProCoModel` around the model."""
        return ProCoModel(model)

    def set_epoch(self, epoch: int, num_epochs: int | None = None) -> None:
        """Begin an epoch: its statistics go on from those of the last one; the same epoch again changes nothing."""
        if epoch != int(self.epoch):
            self.last_sums.copy_(self.feature_sums)
            self.feature_sums.zero_()
            self.epoch.fill_(epoch)

    @property
    def class_mean(self) -> Tensor:
        """Mean feature of each class over the last epoch and this one so far, (C, D), float64."""
        sums = self.last_sums + self.feature_sums
        number = sums[:, -1:]
        return torch.where(number > 0, sums[:, :-1] / number.clamp_min(1), self.initial_mean)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """The classification part of each sample, (B,)."""
        return logit_adjustment_loss(logits, target, self.log_prior, self.tau, reduction='none')

    def forward(self, output: Any, target: Tensor, reduction: str | None = None) -> Tensor:
        if isinstance(output, Tensor):
            if self.training:
                raise TypeError(
                    'ProCoLoss needs (logits, features) in training; wrap the model in timm_lt.models.ProCoModel and '
                    'feed three views per image, (B, 3, ch, H, W)')
            return super().forward(output, target, reduction)
        logits, features = output
        if features.ndim != 3 or features.shape[2] != self.feature_dim:
            raise ValueError(
                f'ProCoLoss was built for features (B, V, {self.feature_dim}), got {tuple(features.shape)}; give loss '
                f'and ProCoModel the same feature_dim and projection_dim')
        check_targets(logits, target, self.soft_targets, type(self).__name__, self.num_classes)
        self._check_values(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            self._follow(logits.device)
            logits = logits if logits.dtype == torch.float64 else logits.float()
            values = self._both_parts(logits, features, target)
            return self._reduced(values, target, reduction)

    def _both_parts(self, logits: Tensor, features: Tensor, target: Tensor) -> Tensor:
        """Weighted value of each sample, (B,), 0 where it is ignored; takes the statistics of the features."""
        ignored, label = ignored_samples(target), with_valid_labels(target)
        values = self.per_sample(logits, label)
        if self.contrastive_weight:
            batch, views, dim = features.shape
            similarity = proco_logits(features.reshape(-1, dim), self.class_mean, self.temperature)
            contrastive = self.per_sample(similarity, label.repeat_interleave(views)).view(batch, views).mean(1)
            values = values + self.contrastive_weight * contrastive.to(values.dtype)
        if self.class_weight is not None:
            values = values * self.class_weight[label].to(values.dtype)
        if self.training and self.statistics_mode != 'hold' and torch.is_grad_enabled():
            self._stage(features.detach(), label, ignored)
        return values if ignored is None else values.masked_fill(ignored, 0)

    @torch.no_grad()
    def _stage(self, features: Tensor, label: Tensor, ignored: Tensor | None) -> None:
        rows = F.pad(features.sum(1).to(self.pending.dtype), (0, 1), value=features.shape[1])
        if ignored is not None:
            rows = rows.masked_fill(ignored[:, None], 0)
        self.pending.index_add_(0, label, rows)
        if self.statistics_mode == 'immediate':
            self.commit_statistics()

    @torch.no_grad()
    def commit_statistics(self) -> None:
        if several_processes():
            dist.all_reduce(self.pending)
        self.feature_sums += self.pending
        self.pending.zero_()

    def discard_statistics(self) -> None:
        self.pending.zero_()

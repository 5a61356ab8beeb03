"""BalPoE: balanced product of calibrated experts.

Paper: E. Sanchez Aimar et al., "Balanced Product of Calibrated Experts for Long-Tailed Recognition", CVPR 2023,
https://arxiv.org/abs/2206.05260
Implements: the mean of the logit-adjusted losses of the experts, each with its own strength.
Source: written from the paper.
Differs from the paper / official code: no.
"""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._registry import register_loss
from .._types import ClassCounts, ClassWeight
from .._validate import check_class_counts, check_numbers
from ..models.experts_network import ExpertsModel
from ._base import LongTailLoss
from ._targets import check_targets

__all__: list[str] = []


@register_loss('balpoe', paper='Sanchez Aimar et al., CVPR 2023', needs=('class_counts',))
class BalPoELoss(LongTailLoss):
    """Mean over the experts of the cross-entropy on logits shifted by ``tau_k`` times the log class prior.

    Takes what :class:`timm_lt.models.ExpertsModel` gives: (logits, logits of each expert). Plain logits (B, C) count as
    one expert with the mean strength.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        taus: Strength of each expert, (K,), each >= 0. The paper uses 0, 1 and 2. Their mean should be 1, because the
            mean of the logits then suits balanced test classes.
        reduction, class_weight: See :class:`LongTailLoss`.
    """

    log_prior: Tensor
    taus: Tensor

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            taus: Sequence[float] = (0.0, 1.0, 2.0),
            reduction: str = 'mean',
            class_weight: ClassWeight | None = None,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__).double()
        super().__init__(reduction, class_weight, len(counts))
        taus = check_numbers('taus', taus, 0)
        self.register_buffer('log_prior', (counts / counts.sum()).log())
        self.register_buffer('taus', torch.tensor(taus, dtype=torch.float64, device='cpu'), persistent=False)

    @classmethod
    def wrap_model(cls, model: nn.Module) -> nn.Module:
        """A :class:`timm_lt.models.ExpertsModel` around the model."""
        return ExpertsModel(model)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Mean loss over the experts, (B,); ``logits`` are (B, K, C), or (B, C) of one expert of mean strength."""
        single = logits.ndim == 2
        taus = self.taus.mean().view(1, 1) if single else self.taus.view(-1, 1)
        log_p = F.log_softmax((logits[:, None] if single else logits) + (taus * self.log_prior).to(logits), dim=2)
        if target.is_floating_point():
            return -(log_p * target[:, None]).sum(2).mean(1)
        return -log_p.gather(2, target.view(-1, 1, 1).expand(-1, log_p.shape[1], 1)).mean((1, 2))

    def forward(self, output: Any, target: Tensor, reduction: str | None = None) -> Tensor:
        if isinstance(output, Tensor):
            return super().forward(output, target, reduction)
        logits, experts = output
        if experts.shape[1] != len(self.taus):
            raise ValueError(
                f'BalPoELoss has {len(self.taus)} strengths, but the network has {experts.shape[1]} experts; give '
                f'--loss-kwargs taus=[...] one strength for each of --experts')
        check_targets(logits, target, self.soft_targets, type(self).__name__, self.num_classes)
        self._check_values(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            experts = experts if experts.dtype == torch.float64 else experts.float()
            self._follow(experts.device)
            soft = self._soft_target(target, logits.to(experts.dtype))
            return self._reduced(self.weighted_per_sample(experts, soft), target, reduction)

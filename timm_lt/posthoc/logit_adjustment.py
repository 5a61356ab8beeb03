"""Logit adjustment after training.

Paper: A. Menon et al., "Long-tail learning via logit adjustment", ICLR 2021, https://arxiv.org/abs/2007.07314
Implements: Eq. (9), ``z_c - tau * log pi_c``.
Source: written from the paper.
Differs from the paper / official code: no.
"""

import math
from typing import Any

from torch import Tensor

from .._registry import register_posthoc
from .._validate import check_class_counts, check_range
from ._base import PostHocMethod, at_least_float32, tensor_like

__all__ = ['logit_adjust']


def logit_adjust(logits: Tensor, class_counts: Any, tau: float = 1.0) -> Tensor:
    """Logit adjustment after training: ``z_c - tau * log pi_c``.

    Args:
        logits: Unnormalised scores of a model trained with plain cross-entropy, (B, C) or (C,).
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``.
        tau: Strength, >= 0; 0 changes nothing. The paper uses 1, or chooses it on validation images.

    Returns:
        Log-scores, the shape of ``logits``.

    Raises:
        ValueError: If shapes disagree, a count is below 1, or tau is negative.
    """
    check_range('tau', tau, 0)
    logits = at_least_float32('logits', logits)
    counts = check_class_counts(class_counts, logits.shape[-1], who='logit_adjust').double()
    return logits - tau * (counts / counts.sum()).log().to(logits)


@register_posthoc('logit_adjust', paper='Menon et al., ICLR 2021', needs=('class_counts',))
class LogitAdjustment(PostHocMethod):
    """Logit adjustment by the class shares of the training images."""

    def needed(self, fitted: Any) -> str | None:
        return 'class_counts'

    def values(self, logits: Tensor, *, class_counts: Any = None, **given: Any) -> dict[str, Any]:
        return {'class_counts': check_class_counts(class_counts, logits.shape[-1], who='choose_tau')}

    def apply(self, fitted: Any, logits: Tensor) -> Tensor:
        counts, logits = fitted.class_counts, at_least_float32('logits', logits)
        # plain numbers, because torch.export cannot follow checks of tensor values
        if len(counts) != logits.shape[-1] or min(counts) < 1:
            check_class_counts(counts, logits.shape[-1], who='logit_adjust')  # raises
        log_prior = tensor_like([math.log(count / sum(counts)) for count in counts], logits)
        return logits - fitted.tau * log_prior

"""Terms that several losses share: reduction, and cross-entropy with a margin on the class of the sample."""

import torch
import torch.nn.functional as F
from torch import Tensor

from .._validate import check_reduction
from ._targets import ignored_samples, with_valid_labels


def reduce(per_sample: Tensor, reduction: str, target: Tensor | None = None) -> Tensor:
    """Per-sample values (B,) reduced by 'mean', 'sum' or 'none'; ignored samples of ``target`` count 0, and not."""
    check_reduction(reduction)
    ignored = None if target is None else ignored_samples(target)
    if ignored is not None:
        per_sample = per_sample.masked_fill(ignored, 0)
    if reduction == 'none':
        return per_sample
    if reduction == 'sum':
        return per_sample.sum()
    if ignored is None:
        return per_sample.mean()
    return per_sample.sum() / (~ignored).sum().clamp(min=1)


def logsumexp_of_others(logits: Tensor) -> Tensor:
    """``log sum_{j != c} exp(z_j)`` for every class c, (B, C), without cancellation, C >= 2."""
    total = torch.logsumexp(logits, dim=1, keepdim=True)
    largest = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)
    # where c is not the largest, the others hold at least half of exp(z_c) + exp(z_largest): 1 - p_c is exact enough
    share = (logits - total).masked_fill(largest, -1.0).exp()
    without_largest = torch.logsumexp(logits.masked_fill(largest, float('-inf')), dim=1, keepdim=True)
    return torch.where(largest, without_largest, total + torch.log1p(-share))


def margin_losses(logits: Tensor, margin: Tensor | float) -> Tensor:
    """Cross-entropy of each sample for every class c, (B, C), with the logit of c alone lowered by its margin."""
    own = logits - margin
    return torch.logaddexp(logsumexp_of_others(logits), own) - own


def margin_cross_entropy(logits: Tensor, target: Tensor, margin: Tensor) -> Tensor:
    """Cross-entropy after the logit of the sample's own class is lowered by that class's margin.

    Args:
        logits: (B, C).
        target: Class indices (B,), or soft (B, C): the expectation over the class that gets the margin.
        margin: (C,), in the units of the logits; a negative one raises the logit.

    Returns:
        Loss of each sample, (B,).
    """
    margin = margin.to(logits.dtype)
    if target.is_floating_point():
        return (target * margin_losses(logits, margin)).sum(1)
    column = with_valid_labels(target)[:, None]
    return F.cross_entropy(logits.scatter_add(1, column, -margin[column]), target, reduction='none')

"""Deferred re-weighting (DRW).

Papers: K. Cao et al., "Learning Imbalanced Datasets with Label-Distribution-Aware Margin Loss", NeurIPS 2019,
https://arxiv.org/abs/1906.07413, Algorithm 1; the weights are those of Y. Cui et al., "Class-Balanced Loss Based on
Effective Number of Samples", CVPR 2019, https://arxiv.org/abs/1901.05555
Source: written from the papers.
Differs from the paper / official code: Algorithm 1 writes inverse frequencies. This module uses the effective number
with beta = 0.9999, as the official code does.
"""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._types import ClassCounts
from .._validate import check_class_counts, check_option, check_range

__all__ = ['DeferredReweighting', 'drw_class_weights', 'effective_number_weights', 'prior_power_weights']

DRW_RULES = ('effective_number', 'prior_power')


def effective_number_weights(class_counts: ClassCounts, beta: float) -> Tensor:
    """Class weights ``(1 - beta) / (1 - beta**n_c)``, scaled to mean 1, (C,), float64.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        beta: In [0, 1); 0 gives ones.
    """
    check_range('beta', beta, 0, 1, high_open=True)
    counts = check_class_counts(class_counts, who='effective_number_weights').double()
    if beta == 0:
        return torch.ones_like(counts)
    weights = (1 - beta) / (1 - beta ** counts)
    return weights / weights.mean()


def drw_class_weights(class_counts: ClassCounts, beta: float = 0.9999) -> Tensor:
    """Class weights of the deferred phase: those of :func:`effective_number_weights`, with the paper's beta."""
    return effective_number_weights(class_counts, beta)


def prior_power_weights(class_counts: ClassCounts, power: float) -> Tensor:
    """Class weights ``pi_c ** -power`` of the class shares pi, scaled to mean 1, (C,), float64 (Wang et al., ADRW).

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        power: >= 0; 0 gives ones, 1 inverse frequencies.
    """
    check_range('power', power, 0)
    counts = check_class_counts(class_counts, who='prior_power_weights').double()
    weights = (counts / counts.sum()) ** -power
    return weights / weights.mean()


class DeferredReweighting:
    """Gives a criterion class weights from a set epoch on.

    Call :meth:`set_epoch` at the start of every epoch, also after a resume: the epoch decides alone.

    Args:
        criterion: A loss of this package that takes class weights, or ``torch.nn.CrossEntropyLoss``.
        class_counts: Training images per class, (C,), each >= 1.
        start_epoch: First epoch with weights, counted from 0. The paper uses 160 of 200.
        beta: Of the rule 'effective_number', in [0, 1), see :func:`effective_number_weights`.
        rule: Rule of the weights: 'effective_number' (DRW) or 'prior_power' (ADRW).
        power: Of the rule 'prior_power', >= 0, see :func:`prior_power_weights`. The paper's code uses 0.15 on
            CIFAR-10-LT and 0.25 on CIFAR-100-LT at an imbalance ratio of 100.

    Raises:
        TypeError: If the criterion takes no class weights.
        ValueError: If it has class weights already, which this schedule would replace, or is for another number of
            classes.

    Examples:
        >>> drw = DeferredReweighting(nn.CrossEntropyLoss(), [500, 50, 5], start_epoch=160)
        >>> for epoch in range(200):
        ...     drw.set_epoch(epoch)
    """

    def __init__(
            self,
            criterion: nn.Module,
            class_counts: ClassCounts,
            start_epoch: int,
            beta: float = 0.9999,
            *,
            rule: str = 'effective_number',
            power: float = 0.15,
    ) -> None:
        check_range('start_epoch', start_epoch, 0)
        self.takes_setter = getattr(criterion, 'takes_class_weight', False)
        if not self.takes_setter and not isinstance(criterion, nn.CrossEntropyLoss):
            raise TypeError(
                f'{type(criterion).__name__} takes no class weights, so it cannot be re-weighted; choose a loss of '
                f'timm_lt.list_losses() that does, or torch.nn.CrossEntropyLoss')
        if (criterion.class_weight if self.takes_setter else criterion.weight) is not None:
            raise ValueError(
                f'{type(criterion).__name__} has class weights already; deferred re-weighting sets them itself, '
                f'so build it without')
        self.criterion: Any = criterion
        self.start_epoch = start_epoch
        if check_option('rule', rule, DRW_RULES) == 'prior_power':
            self.weights = prior_power_weights(class_counts, power)
        else:
            self.weights = drw_class_weights(class_counts, beta)
        if getattr(criterion, 'num_classes', None) not in (None, len(self.weights)):
            raise ValueError(
                f'class_counts has {len(self.weights)} entries, but {type(criterion).__name__} has '
                f'{criterion.num_classes} classes; pass the counts that the loss was built with')
        if not self.takes_setter:
            criterion.register_buffer('weight', None, persistent=False)  # a state has none: the epoch decides
            criterion.register_forward_pre_hook(self._weight_follows_logits, with_kwargs=True)

    def set_epoch(self, epoch: int) -> None:
        """Put the weights of this epoch in force: none before ``start_epoch``."""
        weights = self.weights if epoch >= self.start_epoch else None
        if self.takes_setter:
            self.criterion.set_class_weight(weights)
        else:
            self.criterion.weight = weights

    def _weight_follows_logits(self, criterion: Any, args: tuple, kwargs: dict) -> None:
        # torch's criterion has no other tensor that would tell its device, and a cast would round the weights
        if criterion.weight is None:
            return
        logits = args[0] if args else kwargs['input']
        dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
        if (criterion.weight.device, criterion.weight.dtype) != (logits.device, dtype):
            criterion.weight = self.weights.to(logits.device, dtype)

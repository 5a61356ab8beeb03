"""What every loss shares: one value per sample, float32 arithmetic, class weights, statistics taken once per batch."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._validate import check_option, check_range, check_reduction

STATISTICS_MODES = ('immediate', 'staged', 'hold')
_held = False  # see hold_statistics


def check_targets(
        logits: Tensor,
        target: Tensor,
        soft_targets: bool,
        who: str,
        num_classes: int | None = None,
) -> None:
    """Raise a ValueError unless ``target`` is (B,) int64 or, where allowed, (B, C) floating point.

    ``num_classes`` is the C that the logits must have, if known. Label values are not read here: that would be a host
    synchronisation; the data pipeline checks them once.
    """
    if logits.ndim != 2:
        raise ValueError(f'{who}: logits must have shape (B, C), got {tuple(logits.shape)}')
    if num_classes is not None and logits.shape[1] != num_classes:
        raise ValueError(
            f'{who}: the model gives logits of {logits.shape[1]} classes, but the loss was built for {num_classes}; '
            f'pass one class count (and class weight) per output of the model')
    if target.is_floating_point():
        if not soft_targets:
            raise ValueError(
                f'{who} does not support soft targets (Mixup, CutMix, label smoothing); '
                f'switch them off or choose a loss that does, see timm_lt.list_losses(soft_targets=True)')
        if target.shape != logits.shape:
            raise ValueError(
                f'{who}: soft targets must have the shape of the logits {tuple(logits.shape)}, '
                f'got {tuple(target.shape)}')
        return
    if target.shape != logits.shape[:1]:
        raise ValueError(f'{who}: targets must have shape ({logits.shape[0]},), got {tuple(target.shape)}')
    if target.dtype != torch.int64:
        raise ValueError(f'{who}: class indices must be int64, got {target.dtype}; convert them by target.long()')


class LongTailLoss(nn.Module):
    """Base of the losses on logits.

    A subclass writes :meth:`per_sample`. ``loss(logits, target)`` takes logits (B, C) of any float dtype and targets
    (B,) int64 or, where the method allows, soft (B, C). Arithmetic is float32 (float64 stays), also under autocast.
    The loss of a soft target ``t`` is the expectation ``sum_c t_c * loss(z, c)``, what Mixup's definition asks for; for
    cross-entropy on fixed adjusted logits this is the usual soft cross-entropy. :meth:`per_sample` is therefore linear
    in a soft target and must not normalise it.

    Args:
        reduction: 'mean', 'sum' or 'none' -> (B,). With class weights, 'none' and 'sum' are of the weighted values and
            'mean' divides by the sum of the weights of the targets, as in torch's cross-entropy.
        class_weight: Weight of each class, (C,), or None. Deferred re-weighting sets it later by
            :meth:`set_class_weight`.
        num_classes: C, where the subclass knows it (from its class counts); logits and class weights must have it.

    A loss that gathers statistics in training (GALA) commits them in one of three ways, see :meth:`statistics`.
    """

    soft_targets = True
    takes_class_weight = True
    takes_views = False  # True: takes the output of a three-view network, not plain logits
    couples_samples = False  # True: the value of a sample depends on the batch that it is in
    cosine_classifier = False  # True: wants cosines of a normalised classifier as logits, and scales them by itself

    def __init__(
            self,
            reduction: str = 'mean',
            class_weight: Sequence[float] | Tensor | None = None,
            num_classes: int | None = None,
    ) -> None:
        super().__init__()
        self.reduction = check_reduction(reduction)
        self.num_classes = num_classes
        self.smoothing = 0.0
        self._statistics_mode = 'immediate'
        self.register_buffer('class_weight', None)
        if class_weight is not None:
            self.set_class_weight(class_weight)

    def set_class_weight(self, weight: Sequence[float] | Tensor | None) -> None:
        """Set or clear the class weights, (C,), each finite and >= 0."""
        if weight is None:
            self.class_weight = None
            return
        weight = torch.as_tensor(weight)
        weight = weight.to(torch.float64 if weight.dtype == torch.float64 else torch.float32)
        if weight.ndim != 1 or not bool(torch.isfinite(weight).all()) or bool((weight < 0).any()):
            raise ValueError(f'class_weight must be (C,), finite and >= 0, got shape {tuple(weight.shape)}')
        if self.num_classes not in (None, len(weight)):
            raise ValueError(f'class_weight has {len(weight)} entries, but the loss has {self.num_classes} classes')
        reference = next((b for b in self.buffers() if b is not None), weight)
        self.class_weight = weight.to(reference.device)

    def set_smoothing(self, smoothing: float) -> None:
        """Label smoothing: class indices become ``(1 - smoothing) * onehot + smoothing / C``; soft targets stay.

        Raises:
            ValueError: If out of [0, 1), or the loss accepts no soft targets.
        """
        check_range('smoothing', smoothing, 0, 1, high_open=True)
        if smoothing and not self.soft_targets:
            raise ValueError(
                f'{type(self).__name__} does not support soft targets, so no label smoothing; '
                f'set smoothing to 0, got {smoothing}')
        self.smoothing = float(smoothing)

    def _apply(self, fn: Any, recurse: bool = True) -> nn.Module:
        try:
            return super()._apply(fn, recurse)
        except TypeError:
            # devices without float64 (MPS) take the constants in float32
            for module in self.modules():
                for name, buffer in module._buffers.items():
                    if buffer is not None and buffer.dtype == torch.float64:
                        module._buffers[name] = buffer.float()
            return super()._apply(fn, recurse)

    def _load_from_state_dict(self, state_dict: dict, prefix: str, *args: Any) -> None:
        # class_weight appears in the middle of training (deferred re-weighting): take over its presence too
        saved = state_dict.get(prefix + 'class_weight')
        if saved is not None and self.class_weight is None:
            self.class_weight = torch.empty_like(saved)
        elif saved is None:
            self.class_weight = None
        super()._load_from_state_dict(state_dict, prefix, *args)

    def per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Unweighted loss of each sample, (B,); ``logits`` arrive in float32 or float64, autocast is off."""
        raise TypeError(f'{type(self).__name__} must define per_sample(logits, target)')

    def sample_weight(self, target: Tensor) -> Tensor | None:
        """Class weight of each sample, (B,), or None; for a soft target the expectation over its classes."""
        if self.class_weight is None:
            return None
        weight = self.class_weight.to(target.device)
        if target.is_floating_point():
            return target.to(weight.dtype) @ weight
        weight_of_target = weight[target]
        if self.smoothing:
            return (1 - self.smoothing) * weight_of_target + self.smoothing * weight.mean()
        return weight_of_target

    def normalizer(self, target: Tensor) -> Tensor:
        """What 'mean' divides the sum of the per-sample values by, a scalar tensor: B, or the sum of the weights."""
        weight = self.sample_weight(target)
        if weight is None:
            return torch.full((), target.shape[0], dtype=torch.float32, device=target.device)
        return weight.sum()

    def weighted_per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Value of each sample times its class weight, (B,); for a soft target ``sum_c t_c * w_c * loss(z, c)``."""
        if self.class_weight is None:
            return self.per_sample(logits, target)
        if target.is_floating_point():
            return self.per_sample(logits, target * self.class_weight.to(target.dtype))
        return self.per_sample(logits, target) * self.class_weight[target].to(logits.dtype)

    def forward(self, logits: Tensor, target: Tensor, reduction: str | None = None) -> Tensor:
        reduction = self.reduction if reduction is None else check_reduction(reduction)
        num_classes = self.num_classes
        if num_classes is None and self.class_weight is not None:
            num_classes = len(self.class_weight)
        check_targets(logits, target, self.soft_targets, type(self).__name__, num_classes)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            if self.class_weight is not None and self.class_weight.device != logits.device:
                # a loss without other buffers cannot know its device when weights are set in mid-training
                self.class_weight = self.class_weight.to(logits.device)
            if target.is_floating_point():
                target = target.to(logits.dtype)
            elif self.smoothing:
                target = smooth_target(target, logits, self.smoothing)
            loss = self.weighted_per_sample(logits, target)
            if reduction == 'none':
                return loss
            if reduction == 'sum':
                return loss.sum()
            if self.class_weight is None:
                return loss.mean()
            return loss.sum() / self.normalizer(target).to(loss.dtype)

    # Statistics. A loss without any inherits these as they are.

    @contextmanager
    def statistics(self, mode: str) -> Iterator[None]:
        """How forward passes inside the block treat statistics gathered in training mode.

        'immediate' (default): taken and in force from the next call on. 'staged': taken, in force only after
        :meth:`commit_statistics` (several micro-batches of one step, a step that may be skipped). 'hold': not taken
        (further evaluations of a batch that was counted already).
        """
        before = self._statistics_mode
        self._statistics_mode = check_option('statistics mode', mode, STATISTICS_MODES)
        try:
            yield
        finally:
            self._statistics_mode = before

    @property
    def statistics_mode(self) -> str:
        return 'hold' if _held else self._statistics_mode

    def commit_statistics(self) -> None:
        """Put staged statistics in force, summed over processes. Called on every process, or on none."""

    def discard_statistics(self) -> None:
        """Forget staged statistics (the step was skipped)."""


def smooth_target(target: Tensor, logits: Tensor, smoothing: float) -> Tensor:
    """``(1 - smoothing) * onehot(target) + smoothing / C``, (B, C), in the dtype of the logits."""
    soft = torch.full_like(logits, smoothing / logits.shape[1], requires_grad=False)
    return soft.scatter_add_(1, target[:, None], torch.full_like(soft[:, :1], 1 - smoothing))


def reduce(per_sample: Tensor, reduction: str) -> Tensor:
    """Per-sample values (B,) reduced by 'mean', 'sum' or 'none'."""
    check_reduction(reduction)
    if reduction == 'none':
        return per_sample
    return per_sample.mean() if reduction == 'mean' else per_sample.sum()


def logsumexp_of_others(logits: Tensor) -> Tensor:
    """``log sum_{j != c} exp(z_j)`` for every class c, (B, C), without cancellation, C >= 2."""
    total = torch.logsumexp(logits, dim=1, keepdim=True)
    largest = torch.zeros_like(logits, dtype=torch.bool).scatter_(1, logits.argmax(1, keepdim=True), True)
    # where c is not the largest, the others hold at least half of exp(z_c) + exp(z_largest): 1 - p_c is exact enough
    share = (logits - total).masked_fill(largest, -1.0).exp()
    without_largest = torch.logsumexp(logits.masked_fill(largest, float('-inf')), dim=1, keepdim=True)
    return torch.where(largest, without_largest, total + torch.log1p(-share))


def margin_losses(logits: Tensor, margin: Tensor | float) -> Tensor:
    """Cross-entropy of each sample for every class c, (B, C), where the logit of c alone is lowered by its margin."""
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
    column = target[:, None]
    return F.cross_entropy(logits.scatter_add(1, column, -margin[column]), target, reduction='none')


def sample_losses(criterion: nn.Module, output: Any, target: Tensor) -> tuple[Tensor, Tensor]:
    """Per-sample values of any criterion and the normaliser of its mean.

    Args:
        criterion: A :class:`LongTailLoss`, torch's or timm's softmax cross-entropy, or any module or function that has
            a ``reduction`` attribute with ``'none'`` giving (B,).
        output: What the model returned; logits (B, C) or what the criterion takes.
        target: (B,) or soft (B, C).

    Returns:
        Values (B,) and a scalar tensor N, so that ``values.sum() / N`` is the criterion's mean.

    Raises:
        TypeError: If the criterion gives no per-sample values.
    """
    if hasattr(criterion, 'weighted_per_sample'):
        values = criterion(output, target, reduction='none')
        return values, criterion.normalizer(target)
    count = mean_normalizer(criterion, target)
    name = type(criterion).__name__
    if name in ('LabelSmoothingCrossEntropy', 'SoftTargetCrossEntropy'):
        smoothing = float(getattr(criterion, 'smoothing', 0.0))
        return F.cross_entropy(output, target, label_smoothing=smoothing, reduction='none'), count
    if not hasattr(criterion, 'reduction'):
        raise TypeError(
            f'{name} gives no per-sample loss: sharpness-aware methods need a criterion with a `reduction` attribute '
            f"that allows 'none', such as those of timm_lt.list_losses() or torch.nn.CrossEntropyLoss")
    before = criterion.reduction
    criterion.reduction = 'none'
    try:
        values = criterion(output, target)
    finally:
        criterion.reduction = before
    if values.ndim != 1:
        raise TypeError(f"{name} with reduction='none' must give one value per sample, got shape {tuple(values.shape)}")
    return values, count


def mean_normalizer(criterion: Any, target: Tensor) -> Tensor:
    """What the criterion's mean divides by, a scalar tensor: B, or the sum of the class weights of the samples."""
    if hasattr(criterion, 'weighted_per_sample'):
        return criterion.normalizer(target)
    weight = getattr(criterion, 'weight', None)
    if weight is not None and not target.is_floating_point():
        return weight.to(target.device)[target].sum()
    return torch.full((), target.shape[0], dtype=torch.float32, device=target.device)


@contextmanager
def hold_statistics() -> Iterator[None]:
    """No loss takes statistics inside the block: for a function that evaluates a batch again by a loss not known."""
    global _held
    before, _held = _held, True
    try:
        yield
    finally:
        _held = before


@contextmanager
def statistics(criterion: Any, mode: str) -> Iterator[None]:
    """``criterion.statistics(mode)`` where the criterion has it, else nothing."""
    if hasattr(criterion, 'commit_statistics'):
        with criterion.statistics(mode):
            yield
    else:
        yield

"""Base of the losses: one value per sample, float32 arithmetic, class weights, statistics taken once per batch."""

import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._validate import check_option, check_range, check_reduction
from ._criterion import statistics_held
from ._targets import (
    IGNORE_INDEX,
    check_target_values,
    check_targets,
    ignored_samples,
    is_traced,
    num_counted,
    of_counted_samples,
    smooth_target,
    with_valid_labels,
)

STATISTICS_MODES = ('immediate', 'staged', 'hold')
COSINE_LIMIT = 1.05  # cosines in bfloat16 exceed 1 by rounding


class LongTailLoss(nn.Module):
    """Base of the losses on logits.

    A subclass writes :meth:`per_sample`. ``loss(logits, target)`` takes logits (B, C) of any float dtype and targets
    (B,) int64. Targets may be soft, (B, C), where the method allows. Arithmetic is float32 (float64 stays), also under
    autocast. The loss of a soft target ``t`` is the expectation ``sum_c t_c * loss(z, c)``, as Mixup defines it. For
    cross-entropy on fixed adjusted logits this is the usual soft cross-entropy. :meth:`per_sample` is therefore linear
    in a soft target and must not normalise it.

    Samples with the label ``ignore_index`` (-100, as in torch) are left out. The other samples alone give the value,
    which is 0 if none is left. :meth:`per_sample` never sees the label. A CPU checks the values of targets at every
    call. Other devices check them at the first call, because reading them makes the host wait.

    Args:
        reduction: 'mean', 'sum' or 'none' -> (B,). With class weights, 'none' and 'sum' use the weighted values. 'mean'
            divides by the sum of the targets' weights, as in torch's cross-entropy.
        class_weight: Weight of each class, (C,), or None. Deferred re-weighting sets it later by
            :meth:`set_class_weight`.
        num_classes: C, where the subclass knows it (from its class counts); logits and class weights must have it.

    A loss that gathers statistics in training (GALA) commits them in one of three ways, see :meth:`statistics`.
    """

    soft_targets = True
    takes_class_weight = True
    views = 1  # views of each image in training; with more the loss takes the output of the model of wrap_model
    view_scale: tuple[float, float] = (0.2, 1.0)  # area that the random crops of the further views keep
    couples_samples = False  # True: the value of a sample depends on the batch that it is in
    cosine_classifier = False  # True: wants cosines of a normalised classifier as logits, and scales them by itself
    ignore_index = IGNORE_INDEX
    class_weight: Tensor | None

    @classmethod
    def wrap_model(cls, model: nn.Module) -> nn.Module:
        """The model with the heads that the loss needs in training only; the model itself if it needs none.

        A wrapper gives back the model by ``plain_model()``.

        Raises:
            ValueError: If the model does not fit.
        """
        return model

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
        self._read_values = False
        self._warned_cosines = False
        self.register_buffer('class_weight', None)
        if class_weight is not None:
            self.set_class_weight(class_weight)

    def set_class_weight(self, weight: Sequence[float] | Tensor | None) -> None:
        """Set or clear the class weights, (C,), each finite and >= 0."""
        if weight is None:
            self.class_weight = None
            return
        if not isinstance(weight, Tensor):
            double = getattr(weight, 'dtype', None) == 'float64'
            weight = torch.as_tensor(weight, dtype=torch.float64 if double else torch.float32, device='cpu')
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
        constants = {id(buffer) for buffer in self.buffers()}

        def move(tensor: Tensor) -> Tensor:
            try:
                moved = fn(tensor)
            except TypeError:  # a device without float64 (MPS)
                if tensor.dtype != torch.float64:
                    raise
                return fn(tensor.float())
            # counts and statistics keep their precision under .half(), .bfloat16() and .to(dtype)
            return moved if id(tensor) not in constants else tensor.to(moved.device)

        return super()._apply(move, recurse)

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
        weight_of_target = weight[with_valid_labels(target)]
        if self.smoothing:
            weight_of_target = (1 - self.smoothing) * weight_of_target + self.smoothing * weight.mean()
        ignored = ignored_samples(target)
        return weight_of_target if ignored is None else weight_of_target.masked_fill(ignored, 0)

    def normalizer(self, target: Tensor) -> Tensor:
        """Divisor of 'mean', a scalar tensor: the samples that are not ignored, or the sum of their weights."""
        weight = self.sample_weight(target)
        return num_counted(target) if weight is None else weight.sum()

    def weighted_per_sample(self, logits: Tensor, target: Tensor) -> Tensor:
        """Value of each sample times its class weight, (B,); for a soft target ``sum_c t_c * w_c * loss(z, c)``."""
        if target.is_floating_point():
            weight = 1 if self.class_weight is None else self.class_weight.to(target.dtype)
            return self.per_sample(logits, target * weight)
        ignored, target = ignored_samples(target), with_valid_labels(target)
        values = self.per_sample(logits, target)
        if self.class_weight is not None:
            values = values * self.class_weight[target].to(logits.dtype)
        return values if ignored is None else values.masked_fill(ignored, 0)

    def forward(self, logits: Tensor, target: Tensor, reduction: str | None = None) -> Tensor:
        num_classes = self.num_classes
        if num_classes is None and self.class_weight is not None:
            num_classes = len(self.class_weight)
        check_targets(logits, target, self.soft_targets, type(self).__name__, num_classes)
        self._check_values(logits, target)
        with torch.autocast(logits.device.type, enabled=False):
            logits = logits if logits.dtype == torch.float64 else logits.float()
            self._follow(logits.device)
            soft = self._soft_target(target, logits)
            if self.couples_samples:
                values = of_counted_samples(self.weighted_per_sample, soft, logits)
            else:
                values = self.weighted_per_sample(logits, soft)
            return self._reduced(values, target, reduction)

    def _soft_target(self, target: Tensor, logits: Tensor) -> Tensor:
        """Soft and smoothed targets in the type of ``logits`` (B, C); other class indices unchanged."""
        if target.is_floating_point():
            return target.to(logits.dtype)
        return smooth_target(target, logits, self.smoothing) if self.smoothing else target

    def _reduced(self, values: Tensor, target: Tensor, reduction: str | None) -> Tensor:
        reduction = self.reduction if reduction is None else check_reduction(reduction)
        if reduction == 'none':
            return values
        if reduction == 'sum':
            return values.sum()
        total = self.normalizer(target).to(values.dtype)
        return values.sum() / (total + (total == 0))  # 0 if all samples are ignored

    def _follow(self, device: torch.device) -> None:
        """Move the constants to the logits: torch's default device, or the user, may have put them elsewhere."""
        if any(buffer is not None and buffer.device != device for buffer in self._buffers.values()):
            self.to(device)

    def _check_values(self, logits: Tensor, target: Tensor) -> None:
        """Check targets, and cosines, at every call on a CPU and at the first on other devices."""
        if is_traced(logits):
            return
        if logits.device.type != 'cpu':
            if self._read_values or logits.is_cuda and torch.cuda.is_current_stream_capturing():
                return
            self._read_values = True
        name = type(self).__name__
        check_target_values(target, logits.shape[1], name)
        if not self.cosine_classifier or self._warned_cosines or not logits.numel():
            return
        largest = float(logits.detach().abs().max())
        if largest > COSINE_LIMIT:
            self._warned_cosines = True
            warnings.warn(
                f'{name} expects cosines in [-1, 1], which it scales itself, but a logit has the size {largest:.3g}; '
                f'give the model a normalised classifier: timm_lt.models.use_cosine_classifier(model, scale=1.0)',
                stacklevel=4)

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
        return 'hold' if statistics_held() else self._statistics_mode

    def commit_statistics(self) -> None:
        """Put staged statistics in force, summed over processes. Called on every process, or on none."""

    def discard_statistics(self) -> None:
        """Forget staged statistics (the step was skipped)."""

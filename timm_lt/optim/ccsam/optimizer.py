"""CC-SAM: class-conditional sharpness-aware minimization, first stage.

Paper: Z. Zhou et al., "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition", CVPR 2023.
Implements: method section, first stage. Each class c in the batch has the perturbation ``eps_c = scale * sqrt(k) *
rho_c * g_c / |g_c|`` of the classifier w. g_c is the gradient of the mean loss of its samples, k = dim(w), and ``rho_c
= (|w| / (2 |g_c|))**1/2 * (k (n_c - 1))**-1/4``. The loss is ``(1 - perturbed_share) * clean + perturbed_share * (1/B)
sum_c sum_{i in c} l_i(w + eps_c)``.
Source: written from the equations; the closed form for the classifier is in ``perturbations.py``.
Differs from the paper / official code: n_c = 1 counts as 2 (0 is divided by there); a class without gradient is not
perturbed. ``variant='released'`` takes norm and direction of g_c per tensor, as the official code does. Under mixup it
takes g_c from the mixed loss, 'paper' from the loss for the unmixed label.
"""

import math
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..._classifier import find_classifier
from ..._registry import register_optimizer
from ..._types import ClassCounts, ParamsT
from ..._unwrap import unwrap_model
from ..._validate import check_class_counts, check_option, check_range
from .._head_tail import weights_of_classes
from .._tensors import SavedBuffers, global_norm, scale_, take_gradients
from ..engine import BatchClosure, Part, SharpnessAware, StepGradients
from .closed_form import ClosedForm
from .perturbations import VARIANTS, class_radius, has_closed_form
from .unmixed import UnmixedClosure


@register_optimizer('ccsam', paper='Zhou et al., CVPR 2023', needs=('class_counts',))
class CCSAM(SharpnessAware):
    """Class-conditional sharpness-aware minimization around any optimizer of timm (Zhou et al. 2023, first stage).

    By default the classifier is perturbed. A step then takes one forward and one backward pass, because the features
    give the perturbed losses in closed form. A window of several micro-batches takes one more forward pass, because
    class means are over the whole window. Other layers take a backward and a further pass for each class in the batch.
    They hold the gradients of those classes at the same time.

    Under mixup the clean loss takes the soft targets. The perturbed loss takes the unmixed labels on the mixed images,
    as published. Under DDP class means are over the joint batch.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,), each >= 1.
        scale: Strength of the perturbation, >= 0; 0 is the base optimizer. The official code uses 1e-6.
        perturbed_share: Share of the perturbed loss, in [0, 1]; 0 is the base optimizer. The official code uses 0.5
            (0.3 on CIFAR-10).
        variant: 'paper': norm and direction of g_c jointly over all perturbed tensors; under mixup from the unmixed
            labels. 'released': each tensor has its own norm and direction; under mixup from the soft targets.
        layers: Wildcard or wildcards of the perturbed parameter names; 'classifier', or '*' for the whole network.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'ccsam', lr=0.1, class_counts=counts)
        >>> loss = optimizer.step(timm_lt.optim.BatchClosure(model, criterion, images, target))
    """

    _transient = ('_closed',)
    _closed: ClosedForm | None
    class_aware = True

    def __init__(
            self,
            params: ParamsT,
            class_counts: ClassCounts | None = None,
            *,
            scale: float = 1e-6,
            perturbed_share: float = 0.5,
            variant: str = 'paper',
            layers: Any = 'classifier',
            **options: Any,
    ) -> None:
        self.class_counts = check_class_counts(class_counts, who=type(self).__name__)
        self.scale = check_range('scale', scale, 0)
        self.perturbed_share = check_range('perturbed_share', perturbed_share, 0, 1)
        self.variant = check_option('variant', variant, VARIANTS)
        super().__init__(params, layers=layers, **options)
        self.warn_if_idle()

    def parameters_changed(self) -> None:
        before, self._closed = self._closed, None
        if self.layers != ['classifier'] or self.exclude_norm_bias:
            return
        head: Any = None if self.model is None else find_classifier(self.model)
        if has_closed_form(head) and all(p in self.selection for p in head.parameters()):
            self._closed = ClosedForm(
                head, self.class_counts, self.perturbed_share, self.variant, joint=not self.local_ascent)
            if before is not None and before.head is head:
                self._closed.tap = before.tap

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        if self._closed is not None and unwrap_model(model)[2]:
            self._closed.watch_compiled()

    def radii(self) -> list[float]:
        # one part per class, and the clean loss of the whole batch
        perturbed = self.scale if self.perturbed_share > 0 else 0.0
        return [perturbed] * len(self.class_counts) + [0.0]

    def idle_because(self) -> str | None:
        return 'scale=0' if self.scale == 0 else 'perturbed_share=0' if self.perturbed_share == 0 else None

    def part_weights(self, labels: Tensor) -> Tensor:
        return self._weights(labels, 1 - self.perturbed_share)

    def _weights(self, labels: Tensor, clean_share: float) -> Tensor:
        """A row of ``perturbed_share`` for each class, then one of ``clean_share`` for all samples, (C + 1, B)."""
        num_classes = len(self.class_counts)
        clean = torch.full((1, num_classes), clean_share, dtype=torch.float64)
        clean = weights_of_classes(clean, labels, type(self).__name__)
        return torch.cat([self.perturbed_share * F.one_hot(labels, num_classes).T.double(), clean])

    def perturb(self, parts: list[Part]) -> None:
        """The equations on the gradients of any layers."""
        for part in parts:
            norm = global_norm(part.params)
            numel = sum(p.numel() for p in part.params)
            # the gradient is of perturbed_share * (1/N) * (sum of the losses); g_c is of their mean
            mean = (part.normalizer / self.perturbed_share / part.samples).to(norm)
            groups = [part.grads] if self.variant == 'paper' else [[g] for g in part.grads]
            # the radius |g|**-1/2 of a gradient that is only rounding (a bias before BatchNorm) would be huge
            least = 100 * torch.finfo(norm.dtype).eps * global_norm(part.grads) * mean
            for grads in groups:
                size = global_norm(grads) * mean
                there = ((size > 0) & (size >= least)) | size.isnan()
                size = size.where(there, torch.ones_like(size))
                rho = class_radius(norm, size, self.class_counts[part.index].to(norm), numel) * there
                scale_(grads, part.radius * math.sqrt(numel) * rho * mean / size)

    def _gradients(self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        closure.zero_grad()
        if radii[0] == 0:
            return closure.mean_pass()
        closed = self._closed
        if closed is not None and closure.sharded and not isinstance(closed.head, nn.Linear):
            closed = None
        if closed is not None and getattr(closure.criterion, 'views', 1) == 1:  # else it takes more than the logits
            return closed.gradients(closure, scale=radii[0])
        if self.local_ascent and closure.world_size > 1:
            raise ValueError("CCSAM: local_ascent=True needs layers='classifier'; use local_ascent=False")
        if any(target.is_floating_point() for target in closure.targets):
            return self._mixed_targets(closure, radii, grad_scale)
        return super()._gradients(closure, radii, grad_scale)

    def _mixed_targets(
            self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        """Any layers under soft targets: the clean loss is of the soft targets, the perturbed one of the labels."""
        loss = closure.mean_pass()
        params = self.trained_parameters()
        clean, buffers = take_gradients(params), SavedBuffers(closure.module)
        unmixed = UnmixedClosure(closure, mixed_ascent=self.variant == 'released')
        try:
            StepGradients(self, unmixed, grad_scale).of_parts(
                unmixed.part_table(partial(self._weights, clean_share=0.0)), radii)
        finally:
            buffers.restore()
        for p, g in zip(params, clean):
            if g is not None:
                g = g * (1 - self.perturbed_share)
                p.grad = g if p.grad is None else p.grad + g
        return loss

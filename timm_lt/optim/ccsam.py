"""CC-SAM: class-conditional sharpness-aware minimization, first stage.

Paper: Z. Zhou et al., "Class-Conditional Sharpness-Aware Minimization for Deep Long-Tailed Recognition", CVPR 2023.
Implements: for each class c present the perturbation ``eps_c = scale * sqrt(k) * rho_c * g_c / |g_c|`` of the
classifier w, with g_c the gradient of the mean loss of its samples, k = dim(w) and
``rho_c = (|w| / (2 |g_c|))**1/2 * (k (n_c - 1))**-1/4``, and the loss
``(1 - perturbed_share) * clean + perturbed_share * (1/B) sum_c sum_{i in c} l_i(w + eps_c)``.
Source: written from the equations; closed form for the classifier in ``_ccsam_head.py``.
Differs from the paper / official code: n_c = 1 counts as 2 (0 is divided by there); a class without gradient is not
perturbed. ``variant='released'`` takes norm and direction of g_c per tensor, as the official code does.
"""

import math
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._classifier import find_classifier
from .._registry import register_optimizer
from .._types import ClassCounts, ParamsT
from .._validate import check_class_counts, check_option, check_range
from ._ccsam_closed import ClosedForm, UnmixedClosure, closed_form_of
from ._ccsam_head import VARIANTS, class_perturbations, class_radius, cosine_perturbations
from ._engine import Part, SharpnessAware
from ._head_tail import weights_of_classes
from ._passes import take_gradients
from ._tensors import DTensor, SavedBuffers, global_norm, scale_
from .closure import BatchClosure, unwrap_model


@register_optimizer('ccsam', paper='Zhou et al., CVPR 2023', needs=('class_counts',))
class CCSAM(SharpnessAware):
    """Class-conditional sharpness-aware minimization around any optimizer of timm.

    With the classifier as the perturbed part (the default) a step is one forward and one backward pass: the perturbed
    losses of all classes come in closed form from the features of that forward. A window of several micro-batches takes
    one forward pass more, because class means are over the whole window. Other layers take a backward
    and a further pass for each class in the batch, and hold the gradients of those classes at the same time.

    Under mixup (soft targets) the clean loss is that of the soft targets, the perturbed one that of the unmixed labels
    on the mixed images, as published. Under DDP class means are over the joint batch.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,), each >= 1.
        scale: Strength of the perturbation, >= 0; 0 is the base optimizer. The official code uses 1e-6.
        perturbed_share: Share of the perturbed loss, in [0, 1]; 0 is the base optimizer. The official code uses 0.5
            (0.3 on CIFAR-10).
        variant: 'paper': norm and direction of g_c jointly over all perturbed tensors; 'released': each tensor its own.
        layers: Wildcard or wildcards of the perturbed parameter names; 'classifier', or '*' for the whole network.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.

    Examples:
        >>> optimizer = timm.optim.create_optimizer_v2(model, 'ccsam', lr=0.1, class_counts=counts)
        >>> loss = optimizer.step(timm_lt.optim.BatchClosure(model, criterion, images, target))
    """

    _transient = (*SharpnessAware._transient, '_closed', '_scale_now', '_counts_there', '_closure', '_clean_share')
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

    def attach(self, model: nn.Module) -> None:
        super().attach(model)
        self._closed = None
        if self.layers == ['classifier'] and not self.exclude_norm_bias:
            head = find_classifier(self._model)
            ours = {id(p) for p in self._params()}
            if closed_form_of(head) and all(id(p) in ours for p in head.parameters()):
                if head.weight.shape[0] != len(self.class_counts):
                    raise ValueError(
                        f'CCSAM: class_counts has {len(self.class_counts)} entries, but the model has '
                        f'{head.weight.shape[0]} classes; pass one count per class')
                self._closed = ClosedForm(head, self._head_perturbations, self.perturbed_share, not self.local_ascent)
                if unwrap_model(model)[2]:
                    self._closed.watch_compiled()

    def _head_perturbations(self, features: Tensor, residuals: Tensor, labels: Tensor) -> Any:
        head, scale = self._closed.head, self._scale_now
        weight, bias = (p.full_tensor() if isinstance(p, DTensor) else p for p in (head.weight, head.bias))
        if self._counts_there is None or self._counts_there.device != labels.device:
            self._counts_there = self.class_counts.to(labels.device)
        counts = self._counts_there
        if isinstance(head, nn.Linear):
            return class_perturbations(
                features, residuals, labels, counts, weight, bias, scale=scale, variant=self.variant)
        return cosine_perturbations(features, residuals, labels, counts, weight, head.scale, scale=scale)

    def radii(self) -> list[float]:
        # one part per class, and the clean loss of the whole batch
        perturbed = self.scale if self.perturbed_share > 0 else 0.0
        return [perturbed] * len(self.class_counts) + [0.0]

    def part_weights(self, labels: Tensor) -> Tensor:
        num_classes = len(self.class_counts)
        clean = torch.full((1, num_classes), self._clean_share, dtype=torch.float64)
        clean = weights_of_classes(clean, labels, type(self).__name__)
        return torch.cat([self.perturbed_share * F.one_hot(labels, num_classes).T.double(), clean])

    def perturb(self, parts: list[Part]) -> None:
        """The equations on the gradients of any layers."""
        # a part's gradient is that of perturbed_share * (1/N) * (sum of its losses)
        total = self._closure.normalizer().double() * self._closure.world_size / self.perturbed_share
        for part in parts:
            norm = global_norm(part.params)
            numel = sum(p.numel() for p in part.params)
            mean = (total / part.samples).to(norm)
            groups = [part.grads] if self.variant == 'paper' else [[g] for g in part.grads]
            # of a tensor whose gradient is rounding (a bias before BatchNorm) the radius |g|**-1/2 would be huge
            least = 100 * torch.finfo(norm.dtype).eps * global_norm(part.grads) * mean
            for grads in groups:
                size = global_norm(grads) * mean
                there = ((size > 0) & (size >= least)) | size.isnan()
                size = size.where(there, torch.ones_like(size))
                rho = class_radius(norm, size, self.class_counts[part.index].to(norm), numel) * there
                scale_(grads, part.radius * math.sqrt(numel) * rho * mean / size)

    def _class_aware_gradients(
            self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        closure.zero_grad()
        if radii[0] == 0:
            return closure.mean_pass()
        closed = self._closed is not None and (isinstance(self._closed.head, nn.Linear) or not closure.sharded)
        if closed and not getattr(closure.criterion, 'takes_views', False):  # its loss is of more than the logits
            self._scale_now = radii[0]
            return self._closed.gradients(closure)
        if self.local_ascent and closure.world_size > 1:
            raise ValueError("CCSAM: local_ascent=True needs layers='classifier'; use local_ascent=False")
        mixed = any(target.is_floating_point() for target in closure.targets)
        try:
            if mixed:
                return self._mixed_targets(closure, radii, grad_scale)
            self._closure, self._clean_share = closure, 1 - self.perturbed_share
            return super()._class_aware_gradients(closure, radii, grad_scale)
        finally:
            self._closure = None

    def _mixed_targets(
            self, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
        """Any layers under soft targets: the clean gradient is the closure's, the perturbed one the unmixed labels'."""
        loss = closure.mean_pass()
        params = self._params()
        clean, buffers = take_gradients(params), SavedBuffers(closure.module)
        unmixed = UnmixedClosure(closure)
        self._closure, self._clean_share = unmixed, 0.0
        try:
            super()._class_aware_gradients(unmixed, radii, grad_scale)
        finally:
            buffers.restore()
        for p, g in zip(params, clean):
            if g is not None:
                g = g * (1 - self.perturbed_share)
                p.grad = g if p.grad is None else p.grad + g
        return loss

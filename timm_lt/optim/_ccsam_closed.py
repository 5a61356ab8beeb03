"""A step of CC-SAM whose perturbed part is the classifier: one forward and one backward pass."""

import math
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._capture import InputTap, captured_inputs
from ..losses._criterion import sample_losses
from ._tensors import SavedBuffers
from .closure import BatchClosure


class ClosedForm:
    """The gradients of a step from the input of the classifier.

    Args:
        head: The classifier, linear or cosine.
        perturb: Perturbations of (features, residuals, labels) of the joint batch.
        perturbed_share: Share of the perturbed loss.
        joint: Class means are over the batches of all processes.
    """

    def __init__(
            self,
            head: nn.Module,
            perturb: Callable[[Tensor, Tensor, Tensor], Any],
            perturbed_share: float,
            joint: bool = True,
    ) -> None:
        self.head = head
        self.perturb = perturb
        self.perturbed_share = perturbed_share
        self.joint = joint
        self._checked = False
        self.tap: InputTap | None = None

    def watch_compiled(self) -> None:
        """Have the input of the classifier kept by compiled code; before the model is compiled, at its first call."""
        if self.tap is None:
            self.tap = InputTap()
            self.head.register_forward_pre_hook(self.tap)

    def gradients(self, closure: BatchClosure) -> Tensor:
        """Forward and backward of the total loss over the window; returns the clean loss."""
        unmixed = UnmixedClosure(closure)
        closure.output = []
        if closure.compiled:
            self.watch_compiled()
        if len(closure.targets) == 1:
            with closure.gradient_sync(True):
                batch = HeadBatch(self, closure, unmixed, 0, first=True, graph=True)
                return self._backward(closure, unmixed, batch, self._perturbations(closure, [batch]))
        # class means are over the window, so that all features are needed before the first perturbed loss
        batches, generators = [], []
        for i in range(len(closure.targets)):
            generators.append(generator_states(closure.device))
            with closure.gradient_sync(False):
                batches.append(HeadBatch(self, closure, unmixed, i, first=True, graph=False))
        perturbations = self._perturbations(closure, batches)
        batches.clear()
        buffers, losses = SavedBuffers(closure.module), []
        try:
            for i, states in enumerate(generators):
                restore_generators(closure.device, states)  # the same dropout as in the first pass
                with closure.gradient_sync(i == len(generators) - 1):
                    batch = HeadBatch(self, closure, unmixed, i, first=False, graph=True)
                    losses.append(self._backward(closure, unmixed, batch, perturbations))
        finally:
            buffers.restore()
        return sum(losses)

    def _backward(self, closure: BatchClosure, unmixed: BatchClosure, batch: 'HeadBatch', perturbations: Any) -> Tensor:
        """Backward of the total loss of a micro-batch; its clean loss."""
        with torch.autocast(batch.logits.device.type, enabled=False):
            logits = perturbations.perturbed_logits(self.head, batch.logits, batch.features, batch.labels)
        with closure._forward_context(first=False):
            perturbed, _ = sample_losses(closure.criterion, logits, batch.labels)
        clean = batch.values.sum() / closure.normalizer().to(batch.values.dtype)
        perturbed = perturbed.sum() / unmixed.normalizer().to(perturbed.dtype)
        closure.backward((1 - self.perturbed_share) * clean + self.perturbed_share * perturbed)
        return clean.detach()

    def _perturbations(self, closure: BatchClosure, batches: list['HeadBatch']) -> Any:
        self._check(closure, batches[0])
        features = torch.cat([b.features.detach() for b in batches]).to(batches[0].logits.dtype)
        residuals = torch.cat([b.residuals for b in batches])
        labels = torch.cat([b.labels for b in batches])
        if self.joint and closure.distributed and closure.world_size > 1:
            features, residuals, labels = gather_rows([features, residuals, labels], closure.process_group)
        with torch.autocast(features.device.type, enabled=False):
            return self.perturb(features, residuals, labels)

    def _check(self, closure: BatchClosure, batch: 'HeadBatch') -> None:
        """Once: the logits are what the classifier gives."""
        if self._checked or closure.sharded:
            return
        with torch.no_grad(), closure._forward_context(first=False):
            direct = self.head(batch.features).to(batch.logits)
        largest = float(direct.abs().max())
        if not math.isfinite(largest):
            return  # an overflow of the loss scale; the next step is checked
        if not torch.allclose(direct, batch.logits, rtol=1e-2, atol=1e-2 * largest):
            raise ValueError(_other_head(closure))
        self._checked = True


def _other_head(closure: BatchClosure) -> str:
    return (
        f'CCSAM: {type(closure.module).__name__} does not call its classifier once, on features (B, D), and return its '
        f'logits as they are; name the perturbed layers by a wildcard instead, e.g. layers="fc*"')


class HeadBatch:
    """A micro-batch at the classifier: its input, logits, sample losses, and the residuals.

    Args:
        form: Knows the classifier.
        closure: The batch.
        unmixed: The same with the unmixed labels as targets.
        i: Which micro-batch.
        first: Whether this is the pass whose output and statistics count.
        graph: Keep the graph of the model, and compute residuals only if it is the first pass.

    Attributes:
        residuals: Gradient of each sample's loss for its unmixed label with respect to its logits, (B, C), or None.
    """

    def __init__(
            self, form: ClosedForm, closure: BatchClosure, unmixed: BatchClosure, i: int, *, first: bool, graph: bool,
    ) -> None:
        target, self.labels = closure.targets[i], unmixed.targets[i]
        with closure._forward_context(first):
            with captured_inputs(form.head) if form.tap is None else nullcontext() as inputs:
                with torch.set_grad_enabled(graph):
                    output = closure.model(closure.inputs[i])
            if form.tap is not None:
                inputs = form.tap.take()
                if not inputs:
                    raise RuntimeError(
                        'CCSAM: the model was compiled before this optimizer could see the input of its classifier; '
                        'call optimizer.attach(model) before the first forward pass of the compiled model')
            if len(inputs) != 1 or inputs[0].ndim != 2 or not isinstance(output, Tensor):
                raise ValueError(_other_head(closure))
            if first:
                closure.output.append(output.detach())
            self.features = inputs[0]
            logits = output if output.dtype == torch.float64 else output.float()
            self.logits = logits if graph else logits.detach().requires_grad_()
            self.values, _ = sample_losses(closure.criterion, self.logits, target)
        self.residuals = None
        if first:
            values = self.values
            if target is not self.labels:
                with closure._forward_context(first=False):
                    values, _ = sample_losses(closure.criterion, self.logits, self.labels)
            self.residuals, = torch.autograd.grad(values.sum(), self.logits, retain_graph=graph)


class UnmixedClosure(BatchClosure):
    """A closure with the class of each sample as the target; its passes never count for the statistics of the loss."""

    def __init__(self, closure: BatchClosure) -> None:
        labels = []
        for target, label in zip(closure.targets, closure._labels):
            if not target.is_floating_point():
                labels.append(target)
            else:
                labels.append(target.argmax(1) if label is None else label.to(target.device))
        super().__init__(closure.model, closure.criterion, closure.inputs, labels, closure.accelerator)

    def _forward_context(self, first: bool) -> Any:
        return super()._forward_context(first=False)


def closed_form_of(head: Any) -> bool:
    """Whether the perturbed losses of a classifier are known in closed form."""
    if isinstance(head, nn.Linear):
        return type(head).forward is nn.Linear.forward
    return type(head).__name__ == 'CosineClassifier' and head.log_scale is None


def gather_rows(tensors: list[Tensor], group: Any) -> list[Tensor]:
    """The rows of all processes, which may hold different numbers of them."""
    world = dist.get_world_size(group)
    rows = torch.tensor([len(tensors[0])], device=tensors[0].device)
    counts = [torch.zeros_like(rows) for _ in range(world)]
    dist.all_gather(counts, rows, group=group)
    counts = torch.cat(counts).tolist()
    gathered = []
    for t in tensors:
        padded = F.pad(t, (0, 0) * (t.ndim - 1) + (0, max(counts) - len(t))).contiguous()
        parts = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(parts, padded, group=group)
        gathered.append(torch.cat([part[:n] for part, n in zip(parts, counts)]))
    return gathered


def generator_states(device: torch.device) -> list[Tensor]:
    """States of the global generators, CPU and device."""
    states = [torch.get_rng_state()]
    if device.type == 'cuda':
        states.append(torch.cuda.get_rng_state(device))
    return states


def restore_generators(device: torch.device, states: list[Tensor]) -> None:
    torch.set_rng_state(states[0])
    if device.type == 'cuda':
        torch.cuda.set_rng_state(states[1], device)

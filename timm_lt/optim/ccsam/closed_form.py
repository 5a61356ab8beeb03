"""A step of CC-SAM whose perturbed part is the classifier: one forward and one backward pass."""

import math
from contextlib import nullcontext
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from ..._capture import InputTap, captured_inputs
from ...losses._criterion import sample_losses
from .._tensors import SavedBuffers, add_up
from ..engine import BatchClosure
from .perturbations import HeadPerturbations, head_perturbations
from .unmixed import UnmixedClosure


class ClosedForm:
    """The gradients of a step from the input of the classifier.

    Args:
        head: The classifier, see :func:`has_closed_form`.
        class_counts: Training images per class, (C,).
        perturbed_share: Share of the perturbed loss, in [0, 1].
        variant: See :func:`class_perturbations`.
        joint: Class means are over the batches of all processes.

    Raises:
        ValueError: If the classifier has another number of classes.
    """

    def __init__(
            self, head: Any, class_counts: Tensor, perturbed_share: float, variant: str, joint: bool = True,
    ) -> None:
        if head.weight.shape[0] != len(class_counts):
            raise ValueError(
                f'CCSAM: class_counts has {len(class_counts)} entries, but the model has {head.weight.shape[0]} '
                f'classes; pass one count per class')
        self.head = head
        self.class_counts = class_counts
        self.perturbed_share = perturbed_share
        self.variant = variant
        self.joint = joint
        self._checked = False
        self.tap: InputTap | None = None

    def watch_compiled(self) -> None:
        """Let compiled code keep the input of the classifier; call it before the first pass compiles the model."""
        if self.tap is None:
            self.tap = InputTap()
            self.head.register_forward_pre_hook(self.tap)

    def gradients(self, closure: BatchClosure, scale: float) -> Tensor:
        """Forward and backward of the total loss over the window; returns the clean loss.

        Args:
            closure: The batch.
            scale: Strength of the perturbation at this step.
        """
        unmixed = UnmixedClosure(closure)
        if closure.compiled:
            self.watch_compiled()
        if len(closure.targets) == 1:
            with closure.gradient_sync(True):
                batch = HeadBatch(self, closure, unmixed, 0, first=True, graph=True)
                return self._backward(closure, unmixed, batch, self._perturbations(closure, [batch], scale))
        # class means are over the window, so that all features are needed before the first perturbed loss
        batches = []
        for i in range(len(closure.targets)):
            with closure.gradient_sync(False):
                batches.append(HeadBatch(self, closure, unmixed, i, first=True, graph=False))
        perturbations = self._perturbations(closure, batches, scale)
        num_batches = len(batches)
        batches.clear()
        buffers, losses = SavedBuffers(closure.module), []
        try:
            for i in range(num_batches):
                with closure.gradient_sync(i == num_batches - 1):
                    batch = HeadBatch(self, closure, unmixed, i, first=False, graph=True)
                    losses.append(self._backward(closure, unmixed, batch, perturbations))
        finally:
            buffers.restore()
        return add_up(losses)

    def _backward(
            self, closure: BatchClosure, unmixed: BatchClosure, batch: 'HeadBatch', perturbations: HeadPerturbations,
    ) -> Tensor:
        """Backward of the total loss of a micro-batch; returns its clean loss."""
        with torch.autocast(batch.logits.device.type, enabled=False):
            logits = perturbations.perturbed_logits(self.head, batch.logits, batch.features, batch.labels)
        perturbed = batch.losses(logits, batch.labels, first=False)
        clean = batch.values.sum() / closure.normalizer().to(batch.values.dtype)
        perturbed = perturbed.sum() / unmixed.normalizer().to(perturbed.dtype)
        closure.backward((1 - self.perturbed_share) * clean + self.perturbed_share * perturbed)
        return clean.detach()

    def _perturbations(self, closure: BatchClosure, batches: list['HeadBatch'], scale: float) -> HeadPerturbations:
        self._check(closure, batches[0])
        features = torch.cat([b.features.detach() for b in batches]).to(batches[0].logits.dtype)
        residuals = torch.cat([b.residuals for b in batches])
        labels = torch.cat([b.labels for b in batches])
        if self.joint and closure.distributed and closure.world_size > 1:
            features, residuals, labels = gather_rows([features, residuals, labels], closure.process_group)
        if self.class_counts.device != labels.device:
            self.class_counts = self.class_counts.to(labels.device)
        with torch.autocast(features.device.type, enabled=False):
            return head_perturbations(
                self.head, features, residuals, labels, self.class_counts, scale=scale, variant=self.variant)

    def _check(self, closure: BatchClosure, batch: 'HeadBatch') -> None:
        """Check once that the logits of the model are the output of the classifier."""
        if self._checked or closure.sharded:
            return
        with torch.no_grad(), closure.forward_context(first=False):
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
        residuals: Gradient of each sample's loss with respect to its logits, (B, C), or None. The loss is that of its
            unmixed label, under ``variant='released'`` that of its target.
    """

    def __init__(
            self, form: ClosedForm, closure: BatchClosure, unmixed: BatchClosure, i: int, *, first: bool, graph: bool,
    ) -> None:
        self.closure, self.i = closure, i
        target, self.labels = closure.targets[i], unmixed.targets[i]
        output, self.features = self._forward(form, first, graph)
        if first:
            closure.output.append(output.detach())
        logits = output if output.dtype == torch.float64 else output.float()
        self.logits = logits if graph else logits.detach().requires_grad_()
        self.values = self.losses(self.logits, target, first)
        self.residuals: Any = None
        if first:
            values = self.values
            if target is not self.labels and form.variant == 'paper':
                values = self.losses(self.logits, self.labels, first=False)
            self.residuals, = torch.autograd.grad(values.sum(), self.logits, retain_graph=graph)

    def _forward(self, form: ClosedForm, first: bool, graph: bool) -> tuple[Tensor, Tensor]:
        """Logits of the model and the input of its classifier."""
        closure = self.closure
        with closure.forward_context(first), closure.replay(self.i):
            capture: Any = captured_inputs(form.head) if form.tap is None else nullcontext()
            with capture as inputs, torch.set_grad_enabled(graph):
                output = closure.model(closure.inputs[self.i])
        if form.tap is not None:
            inputs = form.tap.take()
            if not inputs:
                raise RuntimeError(
                    'CCSAM: the model was compiled before this optimizer could see the input of its classifier; '
                    'call optimizer.attach(model) before the first forward pass of the compiled model')
        if len(inputs) != 1 or inputs[0].ndim != 2 or not isinstance(output, Tensor):
            raise ValueError(_other_head(closure))
        return output, inputs[0]

    def losses(self, logits: Tensor, target: Tensor, first: bool) -> Tensor:
        """Loss of each sample, (B,); a loss that draws random numbers draws the same ones at every call."""
        closure = self.closure
        with closure.forward_context(first), closure.replay(self.i, what='loss'):
            return sample_losses(closure.criterion, logits, target)[0]


def gather_rows(tensors: list[Tensor], group: Any) -> list[Tensor]:
    """The rows of all processes, which may hold different numbers of them."""
    world = dist.get_world_size(group)
    rows = torch.tensor([len(tensors[0])], device=tensors[0].device)
    rows_of_ranks = [torch.zeros_like(rows) for _ in range(world)]
    dist.all_gather(rows_of_ranks, rows, group=group)
    sizes: list[int] = torch.cat(rows_of_ranks).tolist()
    gathered = []
    for t in tensors:
        padded = F.pad(t, [0, 0] * (t.ndim - 1) + [0, max(sizes) - len(t)]).contiguous()
        blocks = [torch.empty_like(padded) for _ in range(world)]
        dist.all_gather(blocks, padded, group=group)
        gathered.append(torch.cat([block[:n] for block, n in zip(blocks, sizes)]))
    return gathered

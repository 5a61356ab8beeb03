"""The gradients of one step: the first pass, the perturbations, the further passes, their sum."""

from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .._tensors import (
    Gradients,
    SavedBuffers,
    SavedWeights,
    average_over_processes,
    scale_,
    set_gradients,
    take_gradients,
)
from ..approximate import exact_gradients, stacked_gradients
from .closure import BatchClosure
from .function import FunctionClosure
from .passes import accumulate, part_totals

if TYPE_CHECKING:
    from .optimizer import SharpnessAware


@dataclass
class Part:
    """A part of the batch that is perturbed.

    Attributes:
        index: Number of the part, a row of ``part_weights``.
        radius: Its ``rho`` at this step, > 0.
        samples: Its samples in the joint batch of all processes, those with a weight other than 0; -1 if not counted.
        params: Parameters that it may perturb and that have a gradient.
        grads: Gradient of the loss of the part for each of them, without loss scale. ``perturb`` overwrites them with
            the perturbation ``eps``.
        normalizer: N in the loss ``(1/N) sum_i w(i) l_i`` of the part, of the joint batch; None if the part is the
            whole batch.
    """
    index: int
    radius: float
    samples: int
    params: list[Tensor]
    grads: list[Tensor]
    normalizer: Any = None


class StepGradients:
    """Computes the gradients of one step of a sharpness-aware optimizer into ``.grad``.

    Weights and buffers are afterwards as after one plain forward pass. ``.grad`` is averaged over processes and carries
    the loss scale.

    Args:
        optimizer: The method: how to perturb, which parameters, how to treat BatchNorm.
        closure: The batch, a :class:`BatchClosure`; :meth:`of_whole_batch` accepts a plain function too.
        grad_scale: Factor that the gradients of the closure carry; None for 1.
    """

    def __init__(
            self,
            optimizer: 'SharpnessAware',
            closure: Any,
            grad_scale: Tensor | float | None,
    ) -> None:
        self.optimizer = optimizer
        self.closure = closure
        self.grad_scale = grad_scale
        # another optimizer may step some parameters of the model: they get gradients too, but no perturbation
        self.params = list(optimizer.trained_parameters())
        self._ours = {id(p) for p in self.params}
        if isinstance(closure, BatchClosure):
            self.params += [p for p in closure.module.parameters() if p.requires_grad and id(p) not in self._ours]

    @cached_property
    def _normalizer(self) -> Tensor:
        return self.closure.normalizer().double() * self.closure.world_size

    def of_whole_batch(self, radius: float) -> Any:
        """One part, the whole batch; returns the loss."""
        closure, optimizer = self.closure, self.optimizer
        if not isinstance(closure, BatchClosure):
            closure = FunctionClosure(closure, next((p.device for p in self.params), torch.device('cpu')))
        if radius == 0:
            return closure.plain_gradients()
        closure.zero_grad()
        loss = closure.mean_pass(sync=not optimizer.local_ascent)
        gradients = take_gradients(self.params)
        first = [None if g is None else g.clone() for g in gradients] if optimizer.combines else []
        parts = [self._part(0, radius, -1, gradients)]
        if not parts[0].params:
            set_gradients(self.params, gradients)
            return loss
        del gradients
        with torch.no_grad():
            optimizer.perturb(parts)
            weights, buffers = SavedWeights(parts[0].params), SavedBuffers(optimizer.model)
        try:
            with weights.perturbed(parts[0].params, parts[0].grads):
                closure.mean_pass(first=False)
        finally:
            buffers.restore()
        if optimizer.combines:
            with torch.no_grad():
                optimizer.combine(self.params, first)
        return loss

    def of_parts(self, table: list[Tensor], radii: list[float]) -> Tensor:
        """The sum over the parts, each at its own perturbation; returns the mean loss, detached.

        Args:
            table: Per micro-batch the weight of each sample in each part, (P, B), on the CPU.
            radii: Radius of each part; a part of radius 0 is not perturbed.
        """
        closure, optimizer = self.closure, self.optimizer
        samples, factors = part_totals(closure, table, optimizer.part_normalizer)
        if optimizer.part_normalizer == 'part':
            table = [w * factors[:, None] for w in table]
        perturbed = [k for k, radius in enumerate(radii) if radius > 0 and samples[k] > 0]
        kept = [k for k in range(len(radii)) if k not in perturbed and samples[k] > 0]
        rows = [[w[k] for w in table] for k in perturbed]
        if kept:
            rows.insert(0, [w[kept].sum(0) for w in table])
        closure.zero_grad()
        if not perturbed:
            return self._unperturbed(rows)
        coupled = self._couples_samples()
        if coupled and optimizer.batchnorm != 'batch':
            # DDP broadcasts buffers after a pass in which it averages gradients, and a stacked pass never does
            closure.broadcast_buffers()
            if len(rows) > 1:
                return self._of_stacked_parts(table, radii, samples)
        # overlapping parts, and ignored samples, which are in no part, pass once as a whole batch
        disjoint = all(bool(((torch.stack(weights) != 0).sum(0) == 1).all()) for weights in zip(*rows))
        # a subset would draw other random numbers than an earlier pass of the whole batch
        split = not coupled and not any(closure.on_any_process(not disjoint, closure.drew_random_numbers))
        zeros: Gradients = [None] * len(self.params)
        gradients, mean = accumulate(
            closure, self.params, rows, [zeros] * len(rows), first=True, subset=split, bare=not coupled)
        total = gradients.pop(0) if kept else zeros
        self._average(gradients)
        parts = [self._part(k, radii[k], samples[k], g) for k, g in zip(perturbed, gradients)]
        del gradients
        subset = split or not coupled and not any(closure.on_any_process(closure.drew_random_numbers))
        self._further_passes(parts, table, total, subset)
        return mean

    def _unperturbed(self, rows: list[list[Tensor]]) -> Tensor:
        closure = self.closure
        if not rows or all(torch.allclose(w, torch.ones_like(w), 0, 1e-12) for w in rows[0]):
            return closure.mean_pass()
        zeros: Gradients = [None] * len(self.params)
        (gradients,), mean = accumulate(closure, self.params, rows, [zeros], first=True, subset=False, sync=True)
        set_gradients(self.params, gradients)
        return mean

    def _further_passes(self, parts: list[Part], table: list[Tensor], total: Gradients, subset: bool) -> None:
        """Perturb, pass each part once more at its own weights, and put ``total`` and their gradients into ``.grad``.
        """
        closure = self.closure
        with torch.no_grad():
            self.optimizer.perturb(parts)
            touched = {id(p): p for part in parts for p in part.params}
            weights, buffers = SavedWeights(list(touched.values())), SavedBuffers(closure.module)
        try:
            for i, part in enumerate(parts):
                sync = i == len(parts) - 1 and not subset
                row = [w[part.index] for w in table]
                with weights.perturbed(part.params, part.grads):
                    (total,), _ = accumulate(
                        closure, self.params, [row], [total], first=False, subset=subset, sync=sync)
        finally:
            buffers.restore()
        if closure.ddp is not None and subset:
            average_over_processes([total], self.params, closure.process_group)
        set_gradients(self.params, total)

    def _of_stacked_parts(self, table: list[Tensor], radii: list[float], samples: list[int]) -> Tensor:
        """Two passes for any number of parts, each sample under the weights of its part; approximate."""
        closure, optimizer, params = self.closure, self.optimizer, self.params
        self._check_stackable(table)
        present = [k for k, n in enumerate(samples) if n > 0]
        # ignored samples are in no part, and pass with the first
        groups = [torch.where((w != 0).any(0), (w != 0).int().argmax(0), present[0]) for w in table]
        weights = [w.sum(0) for w in table]
        kept: list[dict] = []
        if optimizer.batchnorm == 'exact_ascent':
            gradients, mean = exact_gradients(closure, params, groups, weights, present, kept)
        else:
            gradients, mean = stacked_gradients(closure, params, groups, weights, present, first=True, kept=kept)
        self._average(gradients)
        parts = [self._part(k, radii[k], samples[k], g) for k, g in zip(present, gradients) if radii[k] > 0]
        del gradients
        with torch.no_grad():
            optimizer.perturb(parts)
            buffers = SavedBuffers(closure.module)
        eps: dict[int, dict[int, Tensor]] = {k: {} for k in present}
        eps.update({part.index: {id(p): e for p, e in zip(part.params, part.grads)} for part in parts})
        try:
            (total,), _ = stacked_gradients(closure, params, groups, weights, present, first=False, kept=kept, eps=eps)
        finally:
            buffers.restore()
        if closure.ddp is not None:
            average_over_processes([total], params, closure.process_group)
        set_gradients(params, total)
        return mean

    def _check_stackable(self, table: list[Tensor]) -> None:
        mode = f'batchnorm={self.optimizer.batchnorm!r}'
        if self.closure.sharded:
            raise ValueError(f"{mode} is not possible with sharded parameters; use batchnorm='batch'")
        if any(bool(((w != 0).sum(0) > 1).any()) for w in table):
            raise ValueError(
                f'{mode} needs every sample in one part; those of {type(self.optimizer).__name__} share samples, use '
                f"batchnorm='batch'")

    def _couples_samples(self) -> bool:
        optimizer, criterion = self.optimizer, self.closure.criterion
        if optimizer.batchnorm != 'batch' and getattr(criterion, 'couples_samples', False):
            raise ValueError(
                f'batchnorm={optimizer.batchnorm!r} passes parts of a batch, but the loss of a sample under '
                f"{type(criterion).__name__} depends on its whole batch; use batchnorm='batch'")
        return optimizer.couples_samples(self.closure)

    def _average(self, gradients: list[Gradients]) -> None:
        """The gradients of the joint batch, from which all processes take the same perturbation."""
        if self.closure.ddp is not None and not self.optimizer.local_ascent:
            average_over_processes(gradients, self.params, self.closure.process_group)

    def _part(self, index: int, radius: float, samples: int, gradients: Gradients) -> Part:
        may_perturb = self.optimizer.selection
        pairs = [
            (p, g) for p, g in zip(self.params, gradients)
            if g is not None and id(p) in self._ours and p in may_perturb]
        part = Part(index, radius, samples, [p for p, _ in pairs], [g for _, g in pairs])
        if samples >= 0:
            part.normalizer = self._normalizer
        if self.grad_scale is not None:
            scale_(part.grads, 1 / self.grad_scale)
        return part

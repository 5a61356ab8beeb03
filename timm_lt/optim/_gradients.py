"""The gradients of one step: the first pass, the perturbations, the further passes, the sum."""

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..losses._criterion import hold_statistics
from ._passes import accumulate, part_totals, running_statistics, set_gradients, take_gradients
from ._stacked import exact_gradients, stacked_gradients
from ._tensors import SavedBuffers, SavedWeights, average_over_processes
from .closure import BatchClosure


@dataclass
class Part:
    """A part of the batch that is perturbed.

    Attributes:
        index: Which part, a row of ``part_weights``.
        radius: Its ``rho`` now, > 0.
        samples: Its samples in the joint batch of all processes (those whose weight is not 0).
        params: Parameters that it may perturb, those with a gradient.
        grads: Gradient of its loss for each of them, without loss scale; ``perturb`` turns them into ``eps``, in place.
    """
    index: int
    radius: float
    samples: int
    params: list[Tensor]
    grads: list[Tensor]


def whole_batch_gradients(optimizer: Any, closure: Any, radius: float, grad_scale: Tensor | float | None) -> Any:
    """Gradients of a method without classes: one part, the whole batch."""
    batch = isinstance(closure, BatchClosure)
    if radius == 0:
        return closure.plain_gradients() if batch else closure()
    if batch:
        closure.zero_grad()
        loss = closure.mean_pass(sync=not optimizer.local_ascent)
    else:
        loss = closure()
    params = optimizer._passing(closure)
    gradients = take_gradients(params)
    parts = [optimizer._part(0, radius, -1, params, gradients, grad_scale)]
    if not parts[0].params:
        set_gradients(params, gradients)
        return loss
    del gradients
    with torch.no_grad():
        optimizer.perturb(parts)
        weights, buffers = SavedWeights(parts[0].params), SavedBuffers(optimizer._model)
    try:
        with weights.perturbed(parts[0].params, parts[0].grads):
            if batch:
                closure.mean_pass(first=False)
            else:
                with hold_statistics():
                    closure()
    finally:
        buffers.restore()
    return loss


def class_aware_gradients(
        optimizer: Any, closure: BatchClosure, radii: list[float], grad_scale: Tensor | float | None) -> Tensor:
    """Gradients of a method whose parts are known by the classes of the samples."""
    table = closure.part_table(optimizer.part_weights)
    samples, factors = part_totals(closure, table, optimizer.part_normalizer)
    if optimizer.part_normalizer == 'part':
        table = [w * factors[:, None] for w in table]
    perturbed = [k for k, radius in enumerate(radii) if radius > 0 and samples[k] > 0]
    kept = [k for k in range(len(radii)) if k not in perturbed and samples[k] > 0]
    rows = [[w[k] for w in table] for k in perturbed]
    if kept:
        rows.insert(0, [w[kept].sum(0) for w in table])
    params = optimizer._passing(closure)
    closure.zero_grad()
    if not rows or not perturbed and all(torch.allclose(w, torch.ones_like(w), 0, 1e-12) for w in rows[0]):
        return closure.mean_pass()
    zeros = [None] * len(params)
    if not perturbed:
        (gradients,), mean = accumulate(closure, params, rows, [zeros], first=True, subset=False, sync=True)
        set_gradients(params, gradients)
        return mean
    coupled = optimizer._couples_samples(closure)
    if coupled and optimizer.batchnorm != 'batch':
        closure.broadcast_buffers()  # DDP would after a pass in which it averages gradients; here it never does
    if coupled and optimizer.batchnorm in ('stacked', 'exact_ascent') and len(rows) > 1:
        return stacked_passes(optimizer, closure, params, table, radii, samples, grad_scale)
    # a sample that counts in several parts, or in none (ignored), passes once, with one graph for all of them
    disjoint = all(bool(((torch.stack(weights) != 0).sum(0) == 1).all()) for weights in zip(*rows))
    gradients, mean = accumulate(
        closure, params, rows, [zeros] * len(rows), first=True, subset=disjoint and not coupled, bare=not coupled)
    total = gradients.pop(0) if kept else zeros
    if closure.ddp is not None and not optimizer.local_ascent:
        average_over_processes(gradients, params, closure.process_group)
    parts = [
        optimizer._part(k, radii[k], samples[k], params, g, grad_scale) for k, g in zip(perturbed, gradients)]
    del gradients
    with torch.no_grad():
        optimizer.perturb(parts)
        touched = {id(p): p for part in parts for p in part.params}
        weights, buffers = SavedWeights(list(touched.values())), SavedBuffers(closure.module)
    subset = not closure.sharded and (not coupled or optimizer.batchnorm != 'batch')
    try:
        for i, part in enumerate(parts):
            last = i == len(parts) - 1
            row = [w[part.index] for w in table]
            # one sample has no statistics of its own
            alone = optimizer.batchnorm == 'group' and any(int((w != 0).sum()) == 1 for w in row)
            frozen = optimizer.batchnorm == 'frozen' or coupled and alone
            frozen = running_statistics(closure.module) if frozen else nullcontext()
            with weights.perturbed(part.params, part.grads), frozen:
                (total,), _ = accumulate(
                    closure, params, [row], [total], first=False, subset=subset, sync=last and not subset)
    finally:
        buffers.restore()
    if closure.ddp is not None and subset:
        average_over_processes([total], params, closure.process_group)
    set_gradients(params, total)
    return mean


def stacked_passes(
        optimizer: Any, closure: BatchClosure, params: list[Tensor], table: list[Tensor], radii: list[float],
        samples: list[int], grad_scale: Tensor | float | None,
) -> Tensor:
    """Two passes for any number of parts, each sample under its own part's weights; approximate."""
    if closure.sharded:
        raise ValueError(
            f"batchnorm={optimizer.batchnorm!r} is not possible with sharded parameters; use batchnorm='batch'")
    if any(bool(((w != 0).sum(0) > 1).any()) for w in table):
        raise ValueError(
            f"batchnorm={optimizer.batchnorm!r} needs every sample in one part; those of {type(optimizer).__name__} "
            f"share samples, use batchnorm='batch'")
    present = [k for k, n in enumerate(samples) if n > 0]
    # ignored samples, which have no part, pass with the first
    groups = [torch.where((w != 0).any(0), (w != 0).int().argmax(0), present[0]) for w in table]
    weights = [w.sum(0) for w in table]
    kept: list[dict] = []
    if optimizer.batchnorm == 'exact_ascent':
        gradients, mean = exact_gradients(closure, params, groups, weights, present, kept)
    else:
        gradients, mean = stacked_gradients(closure, params, groups, weights, present, first=True, kept=kept)
    if closure.ddp is not None and not optimizer.local_ascent:
        average_over_processes(gradients, params, closure.process_group)
    parts = [
        optimizer._part(k, radii[k], samples[k], params, g, grad_scale)
        for k, g in zip(present, gradients) if radii[k] > 0]
    del gradients
    with torch.no_grad():
        optimizer.perturb(parts)
        buffers = SavedBuffers(closure.module)
    eps = {k: {} for k in present}
    eps.update({part.index: {id(p): e for p, e in zip(part.params, part.grads)} for part in parts})
    try:
        (total,), _ = stacked_gradients(closure, params, groups, weights, present, first=False, kept=kept, eps=eps)
    finally:
        buffers.restore()
    if closure.ddp is not None:
        average_over_processes([total], params, closure.process_group)
    set_gradients(params, total)
    return mean

"""Passes over a window of micro-batches that give the gradients of several weighted sums of its sample losses."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn as nn
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ..losses._criterion import mean_normalizer
from ._tensors import SavedBuffers
from .closure import BatchClosure

Weights = list[Tensor]  # per micro-batch: the weight of each of its samples, (B,), on the CPU
Gradients = list[Tensor | None]  # aligned with a list of parameters


def accumulate(
        closure: BatchClosure,
        params: Sequence[Tensor],
        rows: Sequence[Weights],
        start: Sequence[Gradients],
        *,
        first: bool,
        subset: bool,
        sync: bool = False,
        bare: bool = False,
) -> tuple[list[Gradients], Tensor]:
    """Gradients of ``(1/N) sum_i w(i) l_i`` for several weightings ``w``, added to ``start``.

    Args:
        closure: The batch; N is its normaliser.
        params: Parameters whose gradients are wanted.
        rows: The weightings.
        start: For each weighting the gradients to add to; these lists' tensors are changed.
        first: Whether this is the pass whose output and statistics count.
        subset: Only the samples whose weight is not 0 pass. Else the whole batch does, one graph serves all weightings.
        sync: Average over processes with the last backward; for a single weighting.
        bare: Pass without the wrappers of the model, as samples of their own always do: how the batch splits can
            differ between processes, and a wrapper would wait for the others.

    Returns:
        The gradients of each weighting, and the mean loss without weights over the samples that passed, detached.
    """
    gradients = [list(row) for row in start]
    if first:
        closure.output = []
    mean = torch.zeros((), device=closure.device)
    # a graph serves several backwards, except where its memory is given back or its parameters are gathered anew
    separate = subset or ((closure.sharded or closure.compiled) and len(rows) > 1)
    for i in range(len(closure.targets)):
        with closure.gradient_sync(sync and i == len(closure.targets) - 1):
            values, buffers = None, None
            for r, row in enumerate(rows):
                weight, count = row[i], values is None
                if subset:
                    index = weight.nonzero().flatten()
                    if not len(index):
                        continue
                    whole = len(index) == len(weight)
                    weight = weight if whole else weight[index]
                    values = closure.sample_values(i, first, None if whole else index, bare=True)
                    count = True
                elif separate or values is None:
                    values = closure.sample_values(i, first and r == 0, bare=bare)
                    if separate and r == 0 and len(rows) > 1:
                        buffers = SavedBuffers(closure.module)
                normalizer = closure.normalizer().to(values.dtype)
                loss = (values * weight.to(values.device, values.dtype)).sum() / normalizer
                set_gradients(params, gradients[r])
                closure.backward(loss, retain_graph=not separate and r < len(rows) - 1)
                gradients[r] = take_gradients(params)
                if count:
                    mean = mean + values.detach().sum() / normalizer
            if buffers is not None:
                buffers.restore()
    return gradients, mean


def set_gradients(params: Sequence[Tensor], gradients: Gradients) -> None:
    for p, g in zip(params, gradients):
        p.grad = g


def take_gradients(params: Sequence[Tensor]) -> Gradients:
    gradients = [p.grad for p in params]
    for p in params:
        p.grad = None
    return gradients


def part_totals(closure: BatchClosure, weights: Sequence[Tensor], part_normalizer: str) -> tuple[list[int], Tensor]:
    """Samples of each part in the joint batch of all processes, and the factor that its weights take, (P,).

    Args:
        closure: The batch.
        weights: Per micro-batch the weight of each sample in each part, (P, B).
        part_normalizer: 'batch': factor 1. 'part': what makes the part's loss the mean over its samples.
    """
    samples = sum((w != 0).sum(1) for w in weights).double()
    if part_normalizer == 'batch':
        return [int(n) for n in closure.sum_over_processes(samples)], torch.ones_like(samples)
    sums = torch.zeros_like(samples)
    for w, target in zip(weights, closure.targets):
        for k, row in enumerate(w):
            index = row.nonzero().flatten()
            if len(index):
                sums[k] += float(mean_normalizer(closure.criterion, target[index.to(target.device)]))
    samples, sums = closure.sum_over_processes(torch.stack([samples, sums]))
    total = float(closure.normalizer()) * closure.world_size
    return [int(n) for n in samples], torch.where(sums > 0, total / sums.clamp_min(1e-300), 1.0)


def couples_samples(closure: BatchClosure) -> bool:
    """Whether a sample's output, or a buffer, depends on which samples pass together with it.

    BatchNorm in training mode does both. Other modules are tried on two samples: if the output of one has a gradient
    with respect to the other, or a buffer changes, then a batch that passes in two pieces is another one.
    """
    layers = [m for m in closure.module.modules() if isinstance(m, _BatchNorm)]
    if any(m.training or m.running_mean is None for m in layers):
        return True
    saved = SavedBuffers(closure.module)
    before = [(buffer, buffer._version) for _, _, buffer, _ in saved.saved]
    devices = [closure.device] if closure.device.type == 'cuda' else []
    with torch.random.fork_rng(devices):
        coupled = closure.reaches_other_samples()
    after = [buffer for module in closure.module.modules() for buffer in module._buffers.values() if buffer is not None]
    changed = len(after) != len(before) or any(
        a is not b or a._version != version for a, (b, version) in zip(after, before))
    if changed:
        saved.restore()
    # the same answer on every process
    return bool(closure.sum_over_processes(torch.tensor(float(coupled or changed))))


@contextmanager
def running_statistics(module: nn.Module) -> Iterator[None]:
    """BatchNorm layers normalise by their running statistics inside the block."""
    layers = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.training and m.running_mean is not None]
    for m in layers:
        m.training = False
    try:
        yield
    finally:
        for m in layers:
            m.training = True

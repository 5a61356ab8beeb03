"""Passes over a window of micro-batches that give the gradients of several weighted sums of its sample losses."""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ...losses._criterion import mean_normalizer
from .._tensors import Gradients, SavedBuffers, add_up, set_gradients, take_gradients
from .closure import BatchClosure

Weights = list[Tensor]  # per micro-batch: the weight of each of its samples, (B,), on the CPU


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
        start: For each weighting the gradients to add to; the tensors of these lists are changed.
        first: Whether this is the pass whose output and statistics count.
        subset: Only samples with a weight other than 0 pass. Else the whole batch passes once for all weightings.
        sync: Average over processes with the last backward; for a single weighting.
        bare: Pass without the wrappers of the model, as subsets always do. The split of a batch can differ between
            processes, and a wrapper would wait for the others.

    Returns:
        The gradients of each weighting. Then the unweighted mean loss of the samples that passed, detached.
    """
    gradients = [list(row) for row in start]
    mean = torch.zeros((), device=closure.device)
    # a compiled graph frees its memory in its backward, and sharding gathers parameters again: one forward per row
    separate = subset or ((closure.sharded or closure.compiled) and len(rows) > 1)
    for i in range(len(closure.targets)):
        weights = [row[i] for row in rows]
        passes = _subsets(closure, i, weights, first) if subset else _whole(closure, i, weights, first, separate, bare)
        with closure.gradient_sync(sync and i == len(closure.targets) - 1):
            for r, values, weight, counts in passes:
                normalizer = closure.normalizer().to(values.dtype)
                loss = (values * weight.to(values.device, values.dtype)).sum() / normalizer
                set_gradients(params, gradients[r])
                closure.backward(loss, retain_graph=not separate and r < len(rows) - 1)
                gradients[r] = take_gradients(params)
                if counts:
                    mean = mean + values.detach().sum() / normalizer
    return gradients, mean


Pass = tuple[int, Tensor, Tensor, bool]  # row, values of its samples, their weights, whether they count in the mean


def _subsets(closure: BatchClosure, i: int, weights: Weights, first: bool) -> Iterator[Pass]:
    """One forward per row, of the samples with a weight other than 0."""
    for r, weight in enumerate(weights):
        index = weight.nonzero().flatten()
        if len(index) == len(weight):
            yield r, closure.sample_values(i, first, bare=True), weight, True
        elif len(index):
            yield r, closure.sample_values(i, first, index), weight[index], True


def _whole(
        closure: BatchClosure, i: int, weights: Weights, first: bool, separate: bool, bare: bool,
) -> Iterator[Pass]:
    """One forward of the whole micro-batch for all rows, or one for each. Buffers end as after the first.
    """
    values = closure.sample_values(i, first, bare=bare)
    buffers = SavedBuffers(closure.module if separate else None)
    for r, weight in enumerate(weights):
        if separate and r > 0:
            values = closure.sample_values(i, False, bare=bare)
        yield r, values, weight, r == 0
    buffers.restore()


def part_totals(closure: BatchClosure, weights: Sequence[Tensor], part_normalizer: str) -> tuple[list[int], Tensor]:
    """Samples of each part in the joint batch of all processes, and the factor on its weights, (P,).

    Args:
        closure: The batch.
        weights: Per micro-batch the weight of each sample in each part, (P, B).
        part_normalizer: 'batch': the factor is 1. 'part': the factor turns the loss of a part into the mean over the
            samples of the part.
    """
    samples = add_up((w != 0).sum(1) for w in weights).double()
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

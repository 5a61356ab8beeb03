"""The loss of a network as a function of its weights: moving them, putting them back, per-split losses."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

Batches = Iterable[tuple[Tensor, Tensor]]
Loss = Callable[[Tensor, Tensor], Tensor]
Tick = Callable[[], Any]
Directions = list[Tensor]


@torch.no_grad()
def split_losses(
        model: nn.Module,
        batches: Batches,
        splits: Mapping[str, Tensor],
        *,
        loss: Loss | None = None,
) -> dict[str, float | None]:
    """Mean loss over all images (``'all'``) and over those of each split; None for a split without an image.

    Args:
        model, batches, loss: See :func:`measure_landscape`.
        splits: Masks (C,) by name, as :meth:`ClassDistribution.splits` gives them.
    """
    names = list(splits)
    sums: Tensor | None = None
    counts: Tensor | None = None
    with evaluation(model):
        for input, target in on_device(model, batches):
            values = per_sample(loss, model(input), target)
            values = values if values.dtype == torch.float64 else values.float()
            masks = torch.stack([torch.ones_like(target, dtype=torch.bool)] + [
                splits[name].to(target.device)[target] for name in names])
            total, number = masks.to(values.dtype) @ values, masks.sum(1)
            sums = total.double() if sums is None else sums + total
            counts = number if counts is None else counts + number
    if sums is None or counts is None:
        raise ValueError('batches is empty; the landscape needs at least one image')
    return {
        name: float(total) / int(n) if int(n) else None
        for name, total, n in zip(['all', *names], sums.cpu(), counts.cpu())}


@contextmanager
def unchanged(model: nn.Module) -> Iterator[Directions]:
    """Gives copies of the parameters; parameters and buffers are put back, bit by bit, when the block ends."""
    weights = [p.detach().clone() for p in model.parameters()]
    buffers = [b.detach().clone() for b in model.buffers()]
    try:
        yield weights
    finally:
        with torch.no_grad():
            for p, saved in zip([*model.parameters(), *model.buffers()], [*weights, *buffers]):
                p.copy_(saved)


@contextmanager
def evaluation(model: nn.Module) -> Iterator[None]:
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training


@torch.no_grad()
def move(model: nn.Module, weights: Directions, steps: Sequence[tuple[float, Directions]]) -> None:
    for k, (p, w) in enumerate(zip(model.parameters(), weights)):
        p.copy_(w)
        for size, direction in steps:
            p.add_(direction[k], alpha=size)


def images_of(batches: Batches, mask: Tensor | None) -> list[tuple[Tensor, Tensor]]:
    """The images of a split, batch by batch, on the CPU or wherever they are."""
    chosen = []
    for input, target in batches:
        keep = torch.ones_like(target, dtype=torch.bool) if mask is None else mask.to(target.device)[target]
        if bool(keep.any()):
            chosen.append((input[keep], target[keep]))
    return chosen


def on_device(model: nn.Module, batches: Batches) -> Iterator[tuple[Tensor, Tensor]]:
    device = next(model.parameters()).device
    for input, target in batches:
        yield input.to(device), target.to(device)


def per_sample(loss: Loss | None, output: Tensor, target: Tensor) -> Tensor:
    return F.cross_entropy(output, target, reduction='none') if loss is None else loss(output, target)

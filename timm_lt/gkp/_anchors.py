"""The anchor of each group, which is the mean of its classes' stored encoders, and the diagonal Fisher there."""

from collections.abc import Iterator, Sequence
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ._processes import world_size
from .bank import MemoryBank, unflatten
from .fisher import diagonal_fisher


def anchors_and_fishers(
        model: nn.Module,
        encoder: list[Any],
        bank: MemoryBank,
        groups: Tensor,
        images: Sequence[tuple[Tensor, Tensor]],
) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
    """Number, Fisher and anchor of one group after the other; parameters and buffers are restored at the end.

    Args:
        model: In evaluation mode.
        encoder: The parameters of the model that the bank remembers.
        bank: Filled on the process of rank 0.
        groups: Group of each class, (C,).
        images: Images and labels of each group that this process has, see :func:`images_of_groups`.
    """
    known = [x for x, _ in images if len(x)]
    batches = list(torch.cat(known).split(128)) if known else []
    live = [p.detach().clone() for p in encoder]
    buffers = [(b, b.clone()) for b in model.buffers()]
    device = encoder[0].device
    try:
        for k, (x, y) in enumerate(images):
            anchor = unflatten(_anchor(bank, (groups == k).nonzero().flatten(), encoder), encoder)
            anchor = [a.to(device=p.device) for a, p in zip(anchor, encoder)]
            with torch.no_grad():
                torch._foreach_copy_(encoder, anchor)
            _estimate_batchnorm(model, batches, device)
            pairs = [(a.to(device), b.to(device)) for a, b in zip(x.split(64), y.split(64)) if len(b)]
            yield k, diagonal_fisher(model, pairs, F.cross_entropy, encoder), anchor
    finally:
        with torch.no_grad():
            torch._foreach_copy_(encoder, live)
            for buffer, value in buffers:
                buffer.copy_(value)


def _anchor(bank: MemoryBank, classes: Tensor, encoder: Sequence[Tensor]) -> Tensor:
    """The mean of the stored encoders of some classes, (P,), from the process that keeps them."""
    if world_size() == 1:
        return bank.anchor(classes)
    device = encoder[0].device
    vector = torch.empty(sum(p.numel() for p in encoder), device=device)
    if bank.stores:
        vector.copy_(bank.anchor(classes))
    dist.broadcast(vector, src=0)
    return vector


def _estimate_batchnorm(model: nn.Module, batches: list[Tensor], device: torch.device) -> None:
    """Estimate the running statistics of BatchNorm on these images; other layers act as in evaluation."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
              and not isinstance(m, nn.SyncBatchNorm) and m.track_running_stats]
    if not layers or not batches:
        return
    momenta = [m.momentum for m in layers]
    for m in layers:
        m.reset_running_stats()
        m.momentum = None  # an average over all batches
        m.training = True
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch.to(device))
    finally:
        for m, momentum in zip(layers, momenta):
            m.momentum, m.training = momentum, False

"""A forward pass in which every layer works on slices of the batch, each with its own parameters."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .batchnorm import sliced_batch_norm
from .convolution import SlicedConv
from .rows import check_rows


def _by_slices(
        m: nn.Module, sizes: tuple[int, ...], weights: list[dict[str, Tensor]], first: bool, x: Tensor, *args: Any,
) -> Any:
    """The forward of a layer with parameters: slice k uses ``weights[k]``."""
    check_rows(m, sizes, x)
    if type(m) is nn.Conv2d and m.padding_mode == 'zeros' and not isinstance(m.padding, str):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tensors = [w[name] for name in ('weight', 'bias') if name in weights[0] for w in weights]
        return SlicedConv.apply(x, sizes, m, first, *tensors)
    parts = x.split(sizes)
    if type(m) is nn.Linear:
        return torch.cat([F.linear(p, w['weight'], w.get('bias')) for p, w in zip(parts, weights)])
    return torch.cat([_with_weights(m, w, p, args) for p, w in zip(parts, weights)])


def _with_weights(m: nn.Module, weights: dict[str, Any], x: Tensor, args: tuple) -> Tensor:
    before = {name: m._parameters[name] for name in weights}
    forward = type(m).forward
    try:
        m._parameters.update(weights)
        return forward(m, x, *args)
    finally:
        m._parameters.update(before)


@contextmanager
def stacked_forward(
        module: nn.Module, sizes: Sequence[int], weights: Sequence[Mapping[int, Tensor]], first: bool, kept: dict,
        apart: bool | None = None,
) -> Iterator[None]:
    """Inside the block slice k of a batch passes ``module`` with ``weights[k]``.

    Args:
        module: The network.
        sizes: Samples of each slice, each >= 1.
        weights: For each slice the tensors that replace parameters, by the ``id`` of the parameter. If all are empty,
            only BatchNorm works on slices.
        first: Whether this is the first pass. All slices share the weights there, BatchNorm updates its running
            statistics and fills ``kept``. Later passes use up ``kept``.
        kept: Statistics of BatchNorm layers between the passes.
        apart: Whether BatchNorm keeps the gradients of slices apart; None: on the first pass.

    Raises:
        ValueError: If a module holds parameters beside layers, is a SyncBatchNorm, or has its forward replaced.
    """
    sizes, patched, apart = tuple(sizes), [], first if apart is None else apart
    try:
        for name, m in module.named_modules():
            own = {n: p for n, p in m._parameters.items() if p is not None}
            coupled = isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)
            if not coupled and not (own and any(weights)):
                continue
            _check_layer(name, m)
            mine = [{n: w.get(id(p), p) for n, p in own.items()} for w in weights]
            if coupled:
                m.forward = partial(sliced_batch_norm, m, sizes, mine, first, apart, kept.setdefault(name, []))
            else:
                m.forward = partial(_by_slices, m, sizes, mine, first)
            patched.append(m)
        yield
    finally:
        for m in patched:
            del m.forward


def check_stacked(module: nn.Module) -> None:
    """Raise a ValueError for a network that cannot run stacked passes, see :func:`stacked_forward`."""
    for name, m in module.named_modules():
        if isinstance(m, _BatchNorm) or any(p is not None for p in m._parameters.values()):
            _check_layer(name, m)


def _check_layer(name: str, m: nn.Module) -> None:
    if next(m.children(), None) is not None and not isinstance(m, _BatchNorm):
        raise ValueError(
            f"batchnorm='stacked' needs parameters to belong to layers; {name or 'the model'} "
            f"({type(m).__name__}) holds parameters beside layers. Use batchnorm='batch'")
    if isinstance(m, nn.SyncBatchNorm):
        raise ValueError("batchnorm='stacked' does not support SyncBatchNorm; use batchnorm='batch'")
    if m.__dict__.get('forward') is not None:
        raise ValueError(f"batchnorm='stacked' found the forward of {name} replaced; use batchnorm='batch'")

"""One pass of a batch in which the samples of every group meet weights of their own.

A layer with weights works on the slices of a batch sorted by group, each with that group's weights; everything else
sees one batch. BatchNorm normalises by the statistics of the whole batch. Cost: one pass, however many groups.

Approximate, in two ways. On the first pass (gradients of all groups in one backward) the gradient of a group stays with
its own samples: BatchNorm's backward is centred within the group, where the exact one reaches every sample of the
batch. On the second pass (gradient of the sum, exact for this forward) the batch statistics are those of all groups,
each under its own perturbation, where exactly they would be those of the whole batch under one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .closure import BatchClosure

_aten = torch.ops.aten


class _SlicedBatchNorm(torch.autograd.Function):
    """BatchNorm by the statistics of the whole batch, with an affine map per slice.

    The gradient is centred within each slice (``apart``) or over the whole batch: the gradient of the forward.
    """

    @staticmethod
    def forward(
            ctx: Any, x: Tensor, sizes: tuple[int, ...], running: tuple, eps: float, apart: bool, *affine: Tensor,
    ) -> Tensor:
        if x.numel() == x.shape[1]:
            raise ValueError(f'BatchNorm needs more than one value per channel, got input of shape {tuple(x.shape)}')
        pairs = list(zip(affine[::2], affine[1::2]))
        # on the first pass all slices have the same weights; later this gives the statistics
        weight, bias = pairs[0] if apart else (None, None)
        y, mean, inverse = torch.native_batch_norm(x, weight, bias, *running[:2], True, running[2], eps)
        if not apart:
            variance = inverse.square().reciprocal() - eps
            for part, out, (weight, bias) in zip(x.split(sizes), y.split(sizes), pairs):
                out.copy_(F.batch_norm(part, mean, variance, weight, bias, False, 0.0, eps))
        ctx.save_for_backward(x, mean, inverse, *affine)
        ctx.sizes, ctx.eps, ctx.apart = sizes, eps, apart
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, mean, inverse, *affine = ctx.saved_tensors
        grad_x, grads = torch.empty_like(x), []
        slices = zip(x.split(ctx.sizes), grad.split(ctx.sizes), grad_x.split(ctx.sizes), affine[::2])
        shape = [1, -1] + [1] * (x.ndim - 2)
        for part, g, out, weight in slices:
            g_x, g_weight, g_bias = _aten.native_batch_norm_backward(
                g, part, weight, None, None, mean, inverse, True, ctx.eps, [ctx.apart, True, True])
            grads += [g_weight, g_bias]
            if ctx.apart:
                out.copy_(g_x)
            else:
                torch.mul(g, weight.view(shape), out=out)
        if not ctx.apart:
            grad_x = _aten.native_batch_norm_backward(
                grad_x, x, None, None, None, mean, inverse, True, ctx.eps, [True, False, False])[0]
        return (grad_x, None, None, None, None, *grads)


def _batch_norm(
        m: _BatchNorm, sizes: tuple[int, ...], weights: list[dict[str, Tensor]], first: bool, x: Tensor) -> Tensor:
    running = (None, None, 0.0)
    if first and m.track_running_stats and m.running_mean is not None:
        m.num_batches_tracked.add_(1)
        momentum = 1.0 / float(m.num_batches_tracked) if m.momentum is None else m.momentum
        running = (m.running_mean, m.running_var, momentum)
    one, zero = x.new_ones(x.shape[1]), x.new_zeros(x.shape[1])
    affine = [t for w in weights for t in (w.get('weight', one), w.get('bias', zero))]
    x = _SlicedBatchNorm.apply(x, sizes, running, m.eps, first, *affine)
    # timm's BatchNorm may carry dropout and an activation
    for name in ('drop', 'act'):
        if isinstance(getattr(m, name, None), nn.Module):
            x = getattr(m, name)(x)
    return x


def _by_slices(m: nn.Module, sizes: tuple[int, ...], weights: list[dict[str, Tensor]], x: Tensor, *args: Any) -> Any:
    parts = x.split(sizes)
    if type(m) is nn.Conv2d:
        return torch.cat([m._conv_forward(p, w['weight'], w.get('bias')) for p, w in zip(parts, weights)])
    if type(m) is nn.Linear:
        return torch.cat([F.linear(p, w['weight'], w.get('bias')) for p, w in zip(parts, weights)])
    return torch.cat([_with_weights(m, w, p, args) for p, w in zip(parts, weights)])


def _with_weights(m: nn.Module, weights: dict[str, Tensor], x: Tensor, args: tuple) -> Tensor:
    before = {name: m._parameters[name] for name in weights}
    forward = type(m).forward
    try:
        m._parameters.update(weights)
        return forward(m, x, *args)
    finally:
        m._parameters.update(before)


@contextmanager
def stacked_forward(
        module: nn.Module, sizes: Sequence[int], weights: Sequence[Mapping[int, Tensor]], first: bool,
) -> Iterator[None]:
    """Inside the block slice k of a batch passes ``module`` with ``weights[k]``.

    Args:
        module: The network.
        sizes: Samples of each slice, each >= 1.
        weights: For each slice the tensors that stand in for parameters, by the parameter's ``id``.
        first: Whether BatchNorm updates its running statistics and keeps the gradients of slices apart.
    """
    sizes, patched = tuple(sizes), []
    try:
        for name, m in module.named_modules():
            own = {n: p for n, p in m._parameters.items() if p is not None}
            coupled = isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)
            if not own and not coupled:
                continue
            if next(m.children(), None) is not None and not isinstance(m, _BatchNorm):
                raise ValueError(
                    f"batchnorm='stacked' needs parameters to belong to layers; {name or 'the model'} "
                    f"({type(m).__name__}) holds parameters beside layers. Use batchnorm='batch'")
            if isinstance(m, nn.SyncBatchNorm):
                raise ValueError("batchnorm='stacked' does not support SyncBatchNorm; use batchnorm='batch'")
            mine = [{n: w.get(id(p), p) for n, p in own.items()} for w in weights]
            if m.__dict__.get('forward') is not None:
                raise ValueError(f"batchnorm='stacked' found the forward of {name} replaced; use batchnorm='batch'")
            m.forward = partial(_batch_norm, m, sizes, mine, first) if coupled else partial(_by_slices, m, sizes, mine)
            patched.append(m)
        yield
    finally:
        for m in patched:
            del m.forward


def stacked_gradients(
        closure: BatchClosure,
        params: Sequence[Tensor],
        groups: Sequence[Tensor],
        weights: Sequence[Tensor],
        present: Sequence[int],
        *,
        first: bool,
        eps: Mapping[int, Mapping[int, Tensor]] | None = None,
) -> tuple[list[list[Tensor | None]], Tensor]:
    """Gradients of ``(1/N) sum_i w_i l_i`` over the window, by group, or summed where ``eps`` is given.

    Args:
        closure: The batch; N is its normaliser.
        params: Parameters whose gradients are wanted.
        groups: Per micro-batch the group of each sample, (B,), on the CPU.
        weights: Per micro-batch the weight of each sample, (B,).
        present: The groups of the joint batch, ascending.
        first: Whether this is the pass whose output and statistics count.
        eps: Perturbation of each group, by the parameter's ``id``; turned into the perturbed weights, in place.

    Returns:
        One list of gradients for each group present (one in all with ``eps``), None where a parameter got none, and the
        mean loss, detached.
    """
    stand_ins = {}
    for k in present:
        moved = {} if eps is None else eps[k]
        stand_ins[k] = {
            id(p): (moved[id(p)].add_(p.detach()) if id(p) in moved else p.detach()).requires_grad_() for p in params}
    losses = []
    for i, group in enumerate(groups):
        order = torch.argsort(group, stable=True)
        here, sizes = group.unique(return_counts=True)
        chosen = [stand_ins[k] for k in here.tolist()]
        with closure.gradient_sync(False), stacked_forward(closure.module, sizes.tolist(), chosen, first):
            values = closure.sample_values(i, first, order)
            loss = (values * weights[i][order].to(values.device, values.dtype)).sum()
            closure.backward(loss / closure.normalizer().to(values.dtype))
            losses.append(values.detach().sum() / closure.normalizer().to(values.dtype))
    rows = [[stand_ins[k][id(p)].grad for p in params] for k in present]
    if eps is not None:
        rows = [[_sum([row[i] for row in rows]) for i in range(len(params))]]
    return rows, sum(losses)


def _sum(tensors: list[Tensor | None]) -> Tensor | None:
    tensors = [t for t in tensors if t is not None]
    if not tensors:
        return None
    total = tensors[0]
    for t in tensors[1:]:
        total = total.add_(t)
    return total

"""One pass of a batch in which the samples of every group meet weights of their own.

A layer with weights works on the slices of a batch sorted by group, each with that group's weights; everything else
sees one batch. Cost: one pass, however many groups. A convolution shares what it can among the slices: on the first
pass their weights are the same, so that only the gradients of the weights are taken slice by slice; on the second only
the sum of those is wanted, which is taken at once.

BatchNorm couples the samples. On the first pass (gradients of all groups in one backward) it normalises by the whole
batch, and the gradient of a group stays with its own samples: centred within the group, where the exact one reaches
every sample of the batch. On the second pass the exact statistics of group k would be those of the whole batch under
its perturbation. They are taken as those of the whole batch on the first pass, moved by what the perturbation did to
the group's own samples: ``mean + (mean_k' - mean_k)``, and so for the variance. The gradient is centred over the whole
batch, so that without a perturbation it is the plain one.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from ._passes import set_gradients, take_gradients
from .closure import BatchClosure

_aten = torch.ops.aten


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and (biased) variance of each channel; several times as fast on a CPU as ``torch.var_mean``."""
    if x.device.type == 'cpu' and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.device.type in ('cpu', 'cuda'):
        return _aten.batch_norm_update_stats(x, None, None, 0.0)
    variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    return mean, variance


def _affine_map(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` by channel, in one pass over x."""
    scale, shift = scale.to(shift.dtype), shift
    return F.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, False, 0.0, 0.0)


@dataclass
class _Statistics:
    """Of one BatchNorm call on the first pass: of the whole batch, and of each slice."""
    mean: Tensor
    variance: Tensor
    slices: list[tuple[Tensor, Tensor]]


class _SlicedBatchNorm(torch.autograd.Function):
    """BatchNorm of slices with given statistics and an affine map each.

    The gradient is centred within each slice (``apart``) or over the whole batch.
    """

    @staticmethod
    def forward(
            ctx: Any, x: Tensor, sizes: tuple[int, ...], moments: list[tuple[Tensor, Tensor]], eps: float, apart: bool,
            *affine: Tensor,
    ) -> Tensor:
        if apart:  # on the first pass all slices have the same statistics and weights
            y = F.batch_norm(x, *moments[0], *affine[:2], False, 0.0, eps)
        else:
            y = torch.empty_like(x)
            slices = zip(x.split(sizes), y.split(sizes), moments, affine[::2], affine[1::2])
            for part, out, (mean, variance), weight, bias in slices:
                _aten.native_batch_norm.out(
                    part, weight, bias, mean, variance, False, 0.0, eps, out=out, save_mean=mean.new_empty(0),
                    save_invstd=mean.new_empty(0))
        ctx.save_for_backward(x, *affine[::2])
        ctx.sizes, ctx.moments, ctx.eps, ctx.apart = sizes, moments, eps, apart
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, *weights = ctx.saved_tensors
        grad_x, grads = torch.empty_like(x), []
        inverses = [(variance + ctx.eps).rsqrt() for _, variance in ctx.moments]
        slices = list(zip(
            x.split(ctx.sizes), grad.split(ctx.sizes), grad_x.split(ctx.sizes), ctx.moments, inverses, weights))
        for part, g, out, (mean, _), inverse, weight in slices:
            g_x, g_weight, g_bias = _aten.native_batch_norm_backward(
                g, part, weight, None, None, mean, inverse, True, ctx.eps, [ctx.apart, True, True])
            grads += [g_weight, g_bias]
            if ctx.apart:
                out.copy_(g_x)
        if not ctx.apart:
            count = x.numel() // x.shape[1]
            # means over the batch of the gradient of the normalised values, alone and times those values
            alone = sum(w * g for w, g in zip(weights, grads[1::2])) / count
            times = sum(w * g for w, g in zip(weights, grads[::2])) / count
            for part, g, out, (mean, _), inverse, weight in slices:
                slope = -inverse.square() * times
                torch.add(
                    _affine_map(g, weight * inverse, torch.zeros_like(inverse)),
                    _affine_map(part, slope, -inverse * alone - slope * mean), out=out)
        return (grad_x, None, None, None, None, *grads)


def _is_product(m: nn.Conv2d, x: Tensor) -> bool:
    """Whether one matrix product is the faster way: a 1x1 convolution that torch would take sample by sample."""
    return (x.device.type == 'cpu' and len(x) < 16 and m.kernel_size == (1, 1) and m.stride == (1, 1)
            and m.padding == (0, 0) and m.groups == 1)


def _columns(x: Tensor) -> Tensor:
    """(N, C, H, W) to (C, N H W)."""
    return x.transpose(0, 1).reshape(x.shape[1], -1)


def _convolve(m: nn.Conv2d, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    if not _is_product(m, x):
        return m._conv_forward(x, weight, bias)
    weight, columns = weight.flatten(1), _columns(x)
    y = weight @ columns if bias is None else torch.addmm(bias[:, None], weight, columns)
    return y.view(-1, len(x), *x.shape[2:]).transpose(0, 1)


def _input_gradient(m: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor) -> Tensor:
    if not _is_product(m, x):
        return _conv_backward(m, g, x, weight, [True, False, False])[0]
    return (weight.flatten(1).t() @ _columns(g)).view(-1, len(x), *x.shape[2:]).transpose(0, 1)


def _weight_gradients(m: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor | None]:
    """Of the weight, and of the bias if there is one."""
    if not _is_product(m, x):
        return tuple(_conv_backward(m, g, x, weight, [False, True, m.bias is not None])[1:])
    columns = _columns(g)
    return (columns @ _columns(x).t()).view_as(weight), None if m.bias is None else columns.sum(1)


def _conv_backward(m: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Tensor | None, ...]:
    bias_size = None if m.bias is None else [len(weight)]
    return _aten.convolution_backward(
        g, x, weight, bias_size, m.stride, m.padding, m.dilation, False, [0, 0], m.groups, wanted)


class _SlicedConv(torch.autograd.Function):
    """Convolution of slices with weights each.

    ``first``: the weights are the same, and each slice's get a gradient of their own. Else the first slice's get the
    sum of all, the others none.
    """

    @staticmethod
    def forward(
            ctx: Any, x: Tensor, sizes: tuple[int, ...], m: nn.Conv2d, first: bool, *tensors: Tensor,
    ) -> Tensor:
        slices = len(sizes)
        weight, bias = ([t.to(x.dtype) for t in half] for half in (tensors[:slices], tensors[slices:]))
        bias = bias or [None] * slices
        if first:
            weight = weight[:1]
            y = _convolve(m, x, weight[0], bias[0])
        else:
            y = torch.cat([_convolve(m, part, w, b) for part, w, b in zip(x.split(sizes), weight, bias)])
        ctx.save_for_backward(x, *weight)
        ctx.sizes, ctx.m, ctx.first, ctx.types = sizes, m, first, [t.dtype for t in tensors]
        return y

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        x, *weight = ctx.saved_tensors
        m, first = ctx.m, ctx.first
        parts = list(zip(grad.split(ctx.sizes), x.split(ctx.sizes), weight * len(ctx.sizes) if first else weight))
        grad_x, of_tensors = None, [None] * len(ctx.types)
        if ctx.needs_input_grad[0]:
            grad_x = _input_gradient(m, grad, x, weight[0]) if first else torch.cat([
                _input_gradient(m, *part) for part in parts])
        if any(ctx.needs_input_grad[4:]):
            if first:
                pairs = [_weight_gradients(m, *part) for part in parts]
            else:
                pairs = [_weight_gradients(m, grad, x, weight[0])] + [(None, None)] * (len(parts) - 1)
            of_tensors = [t for row in zip(*pairs) for t in row][:len(of_tensors)]
            of_tensors = [t if t is None else t.to(dtype) for t, dtype in zip(of_tensors, ctx.types)]
        return (grad_x, None, None, None, *of_tensors)


def _batch_norm(
        m: _BatchNorm, sizes: tuple[int, ...], weights: list[dict[str, Tensor]], first: bool, apart: bool,
        kept: list[_Statistics], x: Tensor,
) -> Tensor:
    _check_rows(m, sizes, x)
    slices = [_moments(part) for part in x.split(sizes)]
    if first:
        shares = [n / sum(sizes) for n in sizes]
        mean = sum(share * mean for share, (mean, _) in zip(shares, slices))
        variance = sum(share * (v + (each - mean).square()) for share, (each, v) in zip(shares, slices))
        kept.append(_Statistics(mean, variance, slices))
        _update_running_statistics(m, mean, variance, x.numel() // x.shape[1])
        moments = [(mean, variance)] * len(sizes)
    else:
        before = kept.pop(0)
        moments = [
            (before.mean + (mean - mean_0), torch.maximum(before.variance + (v - v_0), 0.1 * before.variance))
            for (mean, v), (mean_0, v_0) in zip(slices, before.slices)]
    one, zero = torch.ones_like(slices[0][0]), torch.zeros_like(slices[0][0])
    affine = [t for w in weights for t in (w.get('weight', one), w.get('bias', zero))]
    x = _SlicedBatchNorm.apply(x, sizes, moments, m.eps, apart, *affine)
    # timm's BatchNorm may carry dropout and an activation
    for name in ('drop', 'act'):
        if isinstance(getattr(m, name, None), nn.Module):
            x = getattr(m, name)(x)
    return x


@torch.no_grad()
def _update_running_statistics(m: _BatchNorm, mean: Tensor, variance: Tensor, count: int) -> None:
    if not m.track_running_stats or m.running_mean is None:
        return
    if count < 2:
        raise ValueError('BatchNorm needs more than one value per channel in training mode')
    m.num_batches_tracked.add_(1)
    momentum = 1.0 / float(m.num_batches_tracked) if m.momentum is None else m.momentum
    for running, value in ((m.running_mean, mean), (m.running_var, variance * (count / (count - 1)))):
        running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)


def _check_rows(m: nn.Module, sizes: tuple[int, ...], x: Tensor) -> None:
    if x.shape[0] != sum(sizes):
        raise ValueError(
            f"batchnorm='stacked' needs layers that see the {sum(sizes)} samples of the batch; {type(m).__name__} got "
            f"{x.shape[0]} rows (several views of an image, class prototypes). Use batchnorm='batch'")


def _by_slices(
        m: nn.Module, sizes: tuple[int, ...], weights: list[dict[str, Tensor]], first: bool, x: Tensor, *args: Any,
) -> Any:
    _check_rows(m, sizes, x)
    if type(m) is nn.Conv2d and m.padding_mode == 'zeros' and not isinstance(m.padding, str):
        if torch.is_autocast_enabled(x.device.type):
            x = x.to(torch.get_autocast_dtype(x.device.type))
        tensors = [w[name] for name in ('weight', 'bias') if name in weights[0] for w in weights]
        return _SlicedConv.apply(x, sizes, m, first, *tensors)
    parts = x.split(sizes)
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
        module: nn.Module, sizes: Sequence[int], weights: Sequence[Mapping[int, Tensor]], first: bool, kept: dict,
        apart: bool | None = None,
) -> Iterator[None]:
    """Inside the block slice k of a batch passes ``module`` with ``weights[k]``.

    Args:
        module: The network.
        sizes: Samples of each slice, each >= 1.
        weights: For each slice the tensors that stand in for parameters, by the parameter's ``id``; if all are empty,
            only BatchNorm is told of the slices.
        first: Whether this is the first pass: the weights of the slices are the same, and BatchNorm updates its running
            statistics and fills ``kept``; later passes use that up.
        kept: Statistics of BatchNorm layers between the passes.
        apart: Whether BatchNorm keeps the gradients of slices apart; None: on the first pass.
    """
    sizes, patched, apart = tuple(sizes), [], first if apart is None else apart
    try:
        for name, m in module.named_modules():
            own = {n: p for n, p in m._parameters.items() if p is not None}
            coupled = isinstance(m, _BatchNorm) and (m.training or m.running_mean is None)
            if not coupled and not (own and any(weights)):
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
            if coupled:
                m.forward = partial(_batch_norm, m, sizes, mine, first, apart, kept.setdefault(name, []))
            else:
                m.forward = partial(_by_slices, m, sizes, mine, first)
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
        kept: list[dict],
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
        kept: An empty list on the first pass, which fills it; the same list on the second.
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
    if first:
        kept.extend({} for _ in groups)
    losses = []
    for i, group in enumerate(groups):
        order = torch.argsort(group, stable=True)
        here, sizes = group.unique(return_counts=True)
        chosen = [stand_ins[k] for k in here.tolist()]
        with closure.gradient_sync(False), stacked_forward(
                closure.module, sizes.tolist(), chosen, first, kept[i]):
            values = closure.sample_values(i, first, order)
            loss = (values * weights[i][order].to(values.device, values.dtype)).sum()
            closure.backward(loss / closure.normalizer().to(values.dtype))
            losses.append(values.detach().sum() / closure.normalizer().to(values.dtype))
    rows = [[stand_ins[k][id(p)].grad for p in params] for k in present]
    if eps is not None:
        rows = [[_sum([row[i] for row in rows]) for i in range(len(params))]]
    return rows, sum(losses)


def exact_gradients(
        closure: BatchClosure,
        params: Sequence[Tensor],
        groups: Sequence[Tensor],
        weights: Sequence[Tensor],
        present: Sequence[int],
        kept: list[dict],
) -> tuple[list[list[Tensor | None]], Tensor]:
    """The first pass of :func:`stacked_gradients` with exact gradients of the groups: a backward for each."""
    kept.extend({} for _ in groups)
    rows: list[list[Tensor | None]] = [[None] * len(params) for _ in present]
    losses = []
    for i, group in enumerate(groups):
        order = torch.argsort(group, stable=True)
        here, sizes = group.unique(return_counts=True)
        unchanged: list[dict[int, Tensor]] = [{} for _ in here]
        with closure.gradient_sync(False), stacked_forward(
                closure.module, sizes.tolist(), unchanged, True, kept[i], apart=False):
            values = closure.sample_values(i, True, order)
            terms = values * weights[i][order].to(values.device, values.dtype) / closure.normalizer().to(values.dtype)
            for k, term in zip(here.tolist(), terms.split(sizes.tolist())):
                row = present.index(k)
                set_gradients(params, rows[row])
                closure.backward(term.sum(), retain_graph=k != int(here[-1]))
                rows[row] = take_gradients(params)
            losses.append(values.detach().sum() / closure.normalizer().to(values.dtype))
    return rows, sum(losses)


def _sum(tensors: list[Tensor | None]) -> Tensor | None:
    tensors = [t for t in tensors if t is not None]
    if not tensors:
        return None
    total = tensors[0]
    for t in tensors[1:]:
        total = total.add_(t)
    return total

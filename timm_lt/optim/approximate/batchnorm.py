"""BatchNorm on the slices of a batch, each slice with its own statistics and affine map."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from .._tensors import add_up
from .rows import check_rows

_aten = torch.ops.aten


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and biased variance of each channel; on a CPU several times as fast as ``torch.var_mean``."""
    if x.device.type == 'cpu' and x.dtype in (torch.float16, torch.bfloat16):
        x = x.float()
    if x.device.type in ('cpu', 'cuda'):
        return _aten.batch_norm_update_stats(x, None, None, 0.0)
    variance, mean = torch.var_mean(x, [d for d in range(x.ndim) if d != 1], correction=0)
    return mean, variance


def _affine_map(x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    """``x * scale + shift`` by channel, in one pass over x."""
    scale = scale.to(shift.dtype)
    return F.batch_norm(x, torch.zeros_like(scale), torch.ones_like(scale), scale, shift, False, 0.0, 0.0)


@dataclass
class Statistics:
    """Statistics of one BatchNorm call on the first pass, each (channels,).

    Attributes:
        mean, variance: Of the whole batch; the variance is biased.
        slices: Mean and variance of each slice.
    """
    mean: Tensor
    variance: Tensor
    slices: list[tuple[Tensor, Tensor]]


class _SlicedBatchNorm(torch.autograd.Function):
    """BatchNorm of slices with given statistics, one pair and one affine map per slice.

    The gradient is centred within each slice (``apart``) or over the whole batch.
    """

    @staticmethod
    def forward(
            ctx: Any, x: Tensor, sizes: tuple[int, ...], moments: list[tuple[Tensor, Tensor]], eps: float, apart: bool,
            *affine: Tensor,
    ) -> Tensor:
        if apart:  # on the first pass all slices share statistics and weights
            y = F.batch_norm(x, moments[0][0], moments[0][1], affine[0], affine[1], False, 0.0, eps)
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


def sliced_batch_norm(
        m: _BatchNorm, sizes: tuple[int, ...], weights: list[dict[str, Tensor]], first: bool, apart: bool,
        kept: list[Statistics], x: Tensor,
) -> Tensor:
    """The forward of a BatchNorm layer on slices.

    Args:
        m: The layer.
        sizes: Samples of each slice.
        weights: Parameters of each slice by name.
        first: Take statistics of the whole batch and append them to ``kept``; else move the first entry of ``kept``.
        apart: Keep the gradients of the slices apart.
        kept: Statistics of the calls of this layer, in their order.
        x: Input, (B, channels, ...).
    """
    check_rows(m, sizes, x)
    slices = [_moments(part) for part in x.split(sizes)]
    if first:
        shares = [n / sum(sizes) for n in sizes]
        mean = add_up(share * mean for share, (mean, _) in zip(shares, slices))
        variance = add_up(share * (v + (each - mean).square()) for share, (each, v) in zip(shares, slices))
        kept.append(Statistics(mean, variance, slices))
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
def _update_running_statistics(m: Any, mean: Tensor, variance: Tensor, count: int) -> None:
    if not m.track_running_stats or m.running_mean is None:
        return
    if count < 2:
        raise ValueError('BatchNorm needs more than one value per channel in training mode')
    m.num_batches_tracked.add_(1)
    momentum = 1.0 / float(m.num_batches_tracked) if m.momentum is None else m.momentum
    for running, value in ((m.running_mean, mean), (m.running_var, variance * (count / (count - 1)))):
        running.mul_(1 - momentum).add_(value.to(running.dtype), alpha=momentum)

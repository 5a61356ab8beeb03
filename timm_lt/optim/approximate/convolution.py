"""Convolution on the slices of a batch, each slice with its own weights."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

_aten = torch.ops.aten


def _is_product(m: nn.Conv2d, x: Tensor) -> bool:
    """Whether a matrix product is faster than torch's convolution: for small batches and 1x1 kernels on a CPU."""
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


def _weight_gradients(m: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Gradient of the weight, and of the bias if there is one."""
    if not _is_product(m, x):
        _, of_weight, of_bias = _conv_backward(m, g, x, weight, [False, True, m.bias is not None])
        return of_weight, of_bias
    columns = _columns(g)
    return (columns @ _columns(x).t()).view_as(weight), None if m.bias is None else columns.sum(1)


def _conv_backward(m: nn.Conv2d, g: Tensor, x: Tensor, weight: Tensor, wanted: list[bool]) -> tuple[Any, ...]:
    bias_size = None if m.bias is None else [len(weight)]
    return _aten.convolution_backward(
        g, x, weight, bias_size, m.stride, m.padding, m.dilation, False, [0, 0], m.groups, wanted)


class SlicedConv(torch.autograd.Function):
    """Convolution of slices, each with its own weights.

    On the ``first`` pass all slices share the weights, and each slice gets its own weight gradient. Later passes need
    only the sum of the gradients. The first slice gets it, and the others get none.
    """

    @staticmethod
    def forward(
            ctx: Any, x: Tensor, sizes: tuple[int, ...], m: nn.Conv2d, first: bool, *tensors: Tensor,
    ) -> Tensor:
        slices = len(sizes)
        weight, bias = ([t.to(x.dtype) for t in half] for half in (tensors[:slices], tensors[slices:]))
        bias = bias or [None] * slices  # type: ignore[list-item]
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
                pairs = [_weight_gradients(m, grad, x, weight[0]), *[(None, None)] * (len(parts) - 1)]
            of_tensors = [t for row in zip(*pairs) for t in row][:len(of_tensors)]
            of_tensors = [t if t is None else t.to(dtype) for t, dtype in zip(of_tensors, ctx.types)]
        return (grad_x, None, None, None, *of_tensors)

"""Gradients and curvature of the mean loss over a set of images: eigenvalue and trace of the Hessian, cosines.

Papers: B. Pearlmutter, "Fast exact multiplication by the Hessian", Neural Computation 1994; M. Hutchinson, "A
stochastic estimator of the trace of the influence matrix", 1990.
Source: written from the papers.
Differs from the paper: no.

Batches, mode and restoration as in :mod:`timm_lt.evaluate.landscape`. Parameters that do not require a gradient are
left out.
"""

from collections.abc import Mapping
from functools import reduce

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from ..._validate import check_range
from .probe import Batches, Directions, Loss, Tick, evaluation, on_device, per_sample


def mean_gradient(model: nn.Module, batches: Batches, *, loss: Loss | None = None) -> Directions:
    """Gradient of the mean loss, one tensor per parameter (zeros where it does not enter)."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    total, number = [torch.zeros_like(p) for p in parameters], 0
    with evaluation(model), torch.enable_grad():
        for input, target in on_device(model, batches):
            value = per_sample(loss, model(input), target).sum()
            for sum_, g in zip(total, torch.autograd.grad(value, parameters, materialize_grads=True)):
                sum_ += g
            number += len(target)
    found = iter(g / max(number, 1) for g in total)
    return [next(found) if p.requires_grad else torch.zeros_like(p) for p in model.parameters()]


def gradient_cosine(
        model: nn.Module,
        parts: Mapping[str, Batches],
        *,
        loss: Loss | None = None,
) -> dict[str, dict[str, float | None]]:
    """Cosine between the mean gradients of several sets of images; None for an empty set or a zero gradient."""
    gradients = {
        name: torch.cat([g.flatten().float() for g in mean_gradient(model, part, loss=loss)]) if part else None
        for name, part in parts.items()}

    def cosine(a: Tensor | None, b: Tensor | None) -> float | None:
        if a is None or b is None or not bool(a.any()) or not bool(b.any()):
            return None
        return float(F.cosine_similarity(a, b, dim=0))

    return {one: {two: cosine(a, b) for two, b in gradients.items()} for one, a in gradients.items()}


def hessian_vector_product(
        model: nn.Module,
        batches: Batches,
        vector: Directions,
        *,
        loss: Loss | None = None,
) -> Directions:
    """``H v`` of the mean loss over the trained parameters, one tensor per parameter."""
    parameters = _trained(model)
    total, number = [torch.zeros_like(p) for p in parameters], 0
    from torch.nn.attention import SDPBackend, sdpa_kernel
    # fused attention has no second derivative
    with evaluation(model), torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
        for input, target in on_device(model, batches):
            value = per_sample(loss, model(input), target).sum()
            gradient = torch.autograd.grad(value, parameters, create_graph=True, materialize_grads=True)
            dot = reduce(torch.add, ((g * v).sum() for g, v in zip(gradient, vector)))
            for sum_, h in zip(total, torch.autograd.grad(dot, parameters, materialize_grads=True)):
                sum_ += h
            number += len(target)
    return [h / max(number, 1) for h in total]


def top_eigenvalue(
        model: nn.Module,
        batches: Batches,
        *,
        iterations: int = 20,
        tolerance: float = 1e-3,
        seed: int = 0,
        loss: Loss | None = None,
        tick: Tick | None = None,
) -> float:
    """Largest (most positive) eigenvalue of the Hessian of the mean loss, by power iteration.

    Args:
        model, batches, loss: See :func:`measure_landscape`.
        iterations: Most Hessian-vector products (twice as many if the eigenvalue of largest size is negative).
        tolerance: Relative change at which it stops.
        seed: Of the first vector.
        tick: Called ``iterations`` times.
    """
    check_range('iterations', iterations, 1)
    options = (iterations, tolerance, seed, loss)
    value, used = _power_iteration(model, batches, 0.0, *options, tick)
    if value < 0:
        # the largest in size is negative: move the spectrum up by it, so that the most positive is the largest
        value = _power_iteration(model, batches, -value, *options, None)[0] + value
    for _ in range(iterations - used):
        if tick:
            tick()
    return value


def hessian_trace(
        model: nn.Module,
        batches: Batches,
        *,
        samples: int = 10,
        seed: int = 0,
        loss: Loss | None = None,
        tick: Tick | None = None,
) -> tuple[float, float | None]:
    """Trace of the Hessian of the mean loss by Hutchinson's estimator with random signs.

    Args:
        model, batches, loss: See :func:`measure_landscape`.
        samples: Random vectors, a Hessian-vector product each.
        seed: Of the vectors.
        tick: Called after each product.

    Returns:
        The mean of ``v . H v`` and its standard error (None for one sample).
    """
    check_range('samples', samples, 1)
    generator = torch.Generator().manual_seed(seed)
    values = []
    for _ in range(samples):
        v = [torch.randint(2, p.shape, generator=generator).to(p) * 2 - 1 for p in _trained(model)]
        values.append(_dot(v, hessian_vector_product(model, batches, v, loss=loss)))
        if tick:
            tick()
    found = torch.stack(values)
    return float(found.mean()), float(found.std() / len(found) ** 0.5) if samples > 1 else None


def _power_iteration(
        model: nn.Module,
        batches: Batches,
        shift: float,
        iterations: int,
        tolerance: float,
        seed: int,
        loss: Loss | None,
        tick: Tick | None,
) -> tuple[float, int]:
    """Eigenvalue of ``H + shift`` of largest size, and the number of products."""
    generator = torch.Generator().manual_seed(seed)
    v = [torch.randn(p.shape, generator=generator).to(p) for p in _trained(model)]
    value = 0.0
    for k in range(iterations):
        norm = _dot(v, v).sqrt()
        v = [x / norm for x in v]
        product = [h + shift * x for h, x in zip(hessian_vector_product(model, batches, v, loss=loss), v)]
        before, value = value, float(_dot(v, product))
        if tick:
            tick()
        if not any(bool(h.any()) for h in product):
            return 0.0, k + 1
        if k and abs(value - before) <= tolerance * abs(value):
            return value, k + 1
        v = product
    return value, iterations


def _trained(model: nn.Module) -> list[nn.Parameter]:
    return [p for p in model.parameters() if p.requires_grad]


def _dot(a: Directions, b: Directions) -> Tensor:
    return reduce(torch.add, ((x.double() * y.double()).sum() for x, y in zip(a, b))).cpu()

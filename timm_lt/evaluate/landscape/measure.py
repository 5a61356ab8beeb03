"""Geometry of the loss, for all images and for those of the many-, medium- and few-shot classes.

Papers: H. Li et al., "Visualizing the Loss Landscape of Neural Nets", NeurIPS 2018, Section 4 (filter normalisation);
P. Foret et al., "Sharpness-Aware Minimization", ICLR 2021, Eq. (2) (one-step sharpness).
Source: written from the papers.
Differs from the paper: no. As there, biases and normalisation parameters get no random direction.

``batches`` is anything that can be iterated several times and yields (input, target): a list, a loader. The network is
in evaluation mode throughout, because normalisation then uses the trained statistics. Parameters, buffers, mode and
``.grad`` are the same bits afterwards as before. The loss of a split is the mean over its images.
"""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ..._validate import check_range, check_rho
from ...class_distribution import SPLIT_NAMES, ClassDistribution
from .curvature import gradient_cosine, hessian_trace, mean_gradient, top_eigenvalue
from .probe import Batches, Directions, Loss, Tick, images_of, move, split_losses, unchanged


def measure_landscape(
        model: nn.Module,
        batches: Batches,
        class_counts: Any,
        *,
        split_rule: str = 'gt100_lt20',
        rho: float = 0.05,
        radius: float = 1.0,
        line_steps: int = 21,
        surface_steps: int = 9,
        iterations: int = 20,
        trace_samples: int = 10,
        seed: int = 0,
        loss: Loss | None = None,
) -> dict[str, Any]:
    """Everything below in one dictionary ready for JSON, with a progress bar on a terminal.

    Args:
        model: On the device of the computation.
        batches: See the module; a few hundred images are enough and keep it to minutes on a CPU.
        class_counts: Training images per class, (C,), or a :class:`ClassDistribution`.
        split_rule: Of :meth:`ClassDistribution.splits`.
        rho: Radius of the sharpness.
        radius: Half width of line and surface, in filter norms.
        line_steps: Points of the line; 0 leaves it out.
        surface_steps: Points of a side of the surface; 0 leaves it out.
        iterations: Most Hessian-vector products for an eigenvalue; 0 leaves out eigenvalue and trace.
        trace_samples: Random vectors for a trace.
        seed: Of all random directions.
        loss: ``loss(output, target)`` that gives one value per sample; None is cross-entropy.

    Returns:
        A dictionary with

        - ``loss``, ``sharpness``, ``top_eigenvalue``, ``trace``, ``trace_error`` (standard error): by split and
          ``'all'``, None for a split without an image;
        - ``line``, ``surface``, ``gradient_cosine`` (of the splits' gradients), ``num_images``, ``rho``, ``seed``.
    """
    distribution = class_counts if isinstance(class_counts, ClassDistribution) else ClassDistribution(class_counts)
    splits = distribution.splits(split_rule)
    subsets = {name: images_of(batches, mask) for name, mask in {'all': None, **splits}.items()}
    present = [name for name, subset in subsets.items() if subset]
    work = line_steps + surface_steps ** 2 + len(present) * (2 + (iterations and iterations + trace_samples))
    result: dict[str, Any] = {
        'num_images': {name: sum(len(y) for _, y in subset) for name, subset in subsets.items()},
        'rho': rho, 'seed': seed, 'loss': split_losses(model, subsets['all'], splits, loss=loss),
    }
    with _progress(work) as tick:
        result['sharpness'] = {
            name: sharpness(model, subset, rho, loss=loss, tick=tick) if subset else None
            for name, subset in subsets.items()}
        result['gradient_cosine'] = gradient_cosine(model, {n: subsets[n] for n in SPLIT_NAMES}, loss=loss)
        if iterations:
            result |= _hessian_metrics(model, subsets, iterations, trace_samples, seed=seed, loss=loss, tick=tick)
        options: dict[str, Any] = {'radius': radius, 'seed': seed, 'loss': loss, 'tick': tick}
        if line_steps:
            result['line'] = loss_line(model, subsets['all'], splits, steps=line_steps, **options)
        if surface_steps:
            result['surface'] = loss_surface(model, subsets['all'], splits, steps=surface_steps, **options)
    return result


def _hessian_metrics(
        model: nn.Module,
        subsets: Mapping[str, Batches],
        iterations: int,
        trace_samples: int,
        **options: Any,
) -> dict[str, dict[str, float | None]]:
    """Largest eigenvalue and trace of the Hessian for each set of images."""
    top: dict[str, float | None] = dict.fromkeys(subsets)
    trace, error = dict(top), dict(top)
    for name, subset in subsets.items():
        if subset:
            top[name] = top_eigenvalue(model, subset, iterations=iterations, **options)
            trace[name], error[name] = hessian_trace(model, subset, samples=trace_samples, **options)
    return {'top_eigenvalue': top, 'trace': trace, 'trace_error': error}


def loss_line(
        model: nn.Module,
        batches: Batches,
        splits: Mapping[str, Tensor],
        *,
        radius: float = 1.0,
        steps: int = 21,
        seed: int = 0,
        loss: Loss | None = None,
        tick: Tick | None = None,
) -> dict[str, Any]:
    """Loss at ``theta + a d`` along one filter-normalised random direction d.

    Args:
        model, batches, loss: See :func:`measure_landscape`.
        splits: Masks (C,) by name.
        radius: Largest ``|a|``.
        steps: Number of a, evenly from -radius to radius; odd includes the trained weights.
        seed: Of the direction.
        tick: Called after each point.

    Returns:
        ``steps`` (the a) and ``loss``: a list for each split that has an image; None where the loss overflows.
    """
    grid = _grid(radius, steps)
    direction = filter_normalized_direction(model, seed)
    points = []
    with unchanged(model) as weights:
        for a in grid:
            move(model, weights, [(a, direction)])
            points.append(split_losses(model, batches, splits, loss=loss))
            if tick:
                tick()
    names = [name for name in splits if points[0][name] is not None]
    return {'steps': grid, 'seed': seed, 'loss': {name: [_finite(p[name]) for p in points] for name in names}}


def loss_surface(
        model: nn.Module,
        batches: Batches,
        splits: Mapping[str, Tensor],
        *,
        radius: float = 1.0,
        steps: int = 9,
        seed: int = 0,
        loss: Loss | None = None,
        tick: Tick | None = None,
) -> dict[str, Any]:
    """Loss at ``theta + a d1 + b d2``; arguments as in :func:`loss_line`, the first direction is that of the line.

    Returns:
        ``steps`` (the a and the b) and ``loss``: rows (a) of lists (b) for each split that has an image.
    """
    grid = _grid(radius, steps)
    first, second = filter_normalized_direction(model, seed), filter_normalized_direction(model, seed + 1)
    rows: list[list[dict[str, float | None]]] = []
    with unchanged(model) as weights:
        for a in grid:
            rows.append([])
            for b in grid:
                move(model, weights, [(a, first), (b, second)])
                rows[-1].append(split_losses(model, batches, splits, loss=loss))
                if tick:
                    tick()
    names = [name for name in splits if rows[0][0][name] is not None]
    return {
        'steps': grid, 'seed': seed,
        'loss': {name: [[_finite(point[name]) for point in row] for row in rows] for name in names}}


def filter_normalized_direction(model: nn.Module, seed: int = 0) -> Directions:
    """Random direction, one tensor per parameter: each filter has the norm of the network's filter; biases are 0.

    Args:
        model: Its parameters give shapes and norms.
        seed: The direction depends on it alone, not on the device.
    """
    generator = torch.Generator().manual_seed(seed)
    direction = []
    for p in model.parameters():
        d = torch.randn(p.shape, generator=generator, dtype=torch.float32).to(p)
        if p.ndim <= 1:
            direction.append(torch.zeros_like(d))
            continue
        shape = (-1, *[1] * (p.ndim - 1))
        norm = d.flatten(1).norm(dim=1).clamp(min=1e-12)
        direction.append(d * (p.detach().flatten(1).norm(dim=1) / norm).reshape(shape))
    return direction


def sharpness(
        model: nn.Module,
        batches: Batches,
        rho: float,
        *,
        loss: Loss | None = None,
        tick: Tick | None = None,
) -> float:
    """``L(theta + rho g / |g|) - L(theta)`` with g the gradient of L: SAM's one-step sharpness.

    Args:
        model, batches, loss: See :func:`measure_landscape`.
        rho: Radius, in the norm of the parameters.
        tick: Called twice.
    """
    check_rho(rho)
    gradient = mean_gradient(model, batches, loss=loss)
    norm = torch.stack([g.norm() for g in gradient]).norm()
    if tick:
        tick()
    with unchanged(model) as weights:
        before = _mean_loss(model, batches, loss)
        move(model, weights, [(rho / max(float(norm), 1e-12), gradient)])
        after = _mean_loss(model, batches, loss)
    if tick:
        tick()
    return after - before


def _mean_loss(model: nn.Module, batches: Batches, loss: Loss | None) -> float:
    value = split_losses(model, batches, {}, loss=loss)['all']
    if value is None:
        raise ValueError('batches hold no image; the landscape needs at least one image')
    return value


def _grid(radius: float, steps: int) -> list[float]:
    check_range('radius', radius, 0, low_open=True)
    check_range('steps', steps, 2)
    return torch.linspace(-radius, radius, steps, dtype=torch.float64).tolist()


def _finite(value: float | None) -> float | None:
    return value if value is not None and math.isfinite(value) else None


@contextmanager
def _progress(total: int) -> Iterator[Tick]:
    from tqdm import tqdm
    with tqdm(total=total, desc='landscape', disable=None, leave=False) as bar:  # None: silent unless on a terminal
        yield bar.update

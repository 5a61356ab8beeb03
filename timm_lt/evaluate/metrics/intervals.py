"""Bootstrap over test images: resampled counts, means over classes, percentile intervals.

Paper: B. Efron, "Bootstrap methods: another look at the jackknife", Annals of Statistics 1979.
Source: written from the definition.
Differs from the paper: no. Drawing N images with replacement is one multinomial draw over the kinds of image.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...class_distribution import SPLIT_NAMES

LEVEL = 0.95  # of confidence intervals


def accuracy_intervals(
        targets: Tensor,
        rank: Tensor,
        splits: Mapping[str, Tensor],
        resamples: int,
        seed: int,
) -> dict[str, Any]:
    """Intervals of ``top1``, ``top5``, ``balanced_accuracy`` and the splits, in percent.

    Args:
        targets: (N,).
        rank: Of :func:`predict`, (N,).
        splits: Masks (C,) by name.
        resamples: Number of resampled test sets.
        seed: Of the draws.
    """
    num_classes = len(splits['few'])
    outcome = torch.where(rank == 0, 0, torch.where(rank < 5, 1, 2))  # right, in the first five, wrong
    cells = torch.bincount(3 * targets + outcome, minlength=3 * num_classes)
    drawn = draw_cells(cells, resamples, seed).reshape(resamples, num_classes, 3)
    images = drawn.sum(-1)
    intervals = {
        'top1': interval(100.0 * drawn[..., 0].sum(1) / len(targets)),
        'top5': interval(100.0 * drawn[..., :2].sum((1, 2)) / len(targets)),
        'balanced_accuracy': interval(class_means(drawn[..., 0], images)),
    }
    for name in SPLIT_NAMES:
        mask = splits[name].numpy()
        intervals[name] = interval(class_means(drawn[:, mask, 0], images[:, mask]))
    return {'level': LEVEL, 'resamples': resamples, 'seed': seed, **intervals}


def draw_cells(cells: Tensor, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap counts of the cells, (resamples, cells)."""
    total = int(cells.sum())
    return np.random.default_rng(seed).multinomial(total, cells.double().numpy() / total, size=resamples)


def class_means(hits: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean of the per-class accuracies in percent of each resample, over the classes that it drew."""
    drawn = images > 0
    accuracy = np.divide(hits, images, out=np.zeros(hits.shape), where=drawn)
    classes = drawn.sum(1)
    return np.divide(100.0 * accuracy.sum(1), classes, out=np.full(len(hits), np.nan), where=classes > 0)


def interval(values: np.ndarray) -> list[float] | None:
    """Percentile interval; None if nothing could be drawn."""
    values = values[~np.isnan(values)]
    if values.size == 0:
        return None
    tail = 50.0 * (1 - LEVEL)
    return [float(v) for v in np.percentile(values, [tail, 100 - tail])]

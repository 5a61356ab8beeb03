"""Accuracy and classifier weights against class size."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from ...._validate import check_class_counts
from ....class_distribution import SPLIT_NAMES, ClassDistribution
from ...metrics import resolve_split_rule
from .style import (
    GREY,
    INK,
    RUN_COLORS,
    RUN_LINES,
    SPLIT_COLORS,
    SPLIT_HATCHES,
    SPLIT_MARKERS,
    classes_text,
    is_narrow,
    legend_below,
    legend_label,
    new_figure,
    plain_log_ticks,
    short,
    styled,
)

SMOOTH_FROM = 20  # tested classes: a running mean of fewer would draw its own kernel


@styled
def accuracy_by_class_size(reports: Mapping[str, Any] | Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> Any:
    """Per-class accuracy over the number of training images, with a running mean from 20 tested classes on.

    Args:
        reports: One result of :func:`timm_lt.evaluate.report`, or several to lay over one another.
        names: Names of several runs.
    """
    reports = [reports] if isinstance(reports, Mapping) else list(reports)
    single = len(reports) == 1
    figure, (axes,) = new_figure(1, width=5.4, height=3.5)
    for k, result in enumerate(reports):
        size, accuracy, classes = _tested(result)
        color, line = RUN_COLORS[k % len(RUN_COLORS)], RUN_LINES[k % len(RUN_LINES)]
        label = legend_label(names[k]) if names else f'run {k + 1}'
        if single:
            _marks_by_split(axes, result, size, accuracy, classes)
            color, line, label = GREY, '-', 'running mean'
        else:
            axes.plot(size, accuracy, '.', color=color, alpha=0.5, ms=6, mew=0)
        if len(classes) >= SMOOTH_FROM:
            axes.plot(*_running_mean(size, accuracy), color=color, ls=line, label=label, zorder=2)
        elif not single:
            order = np.argsort(size, kind='stable')
            axes.plot(size[order], accuracy[order], color=color, ls=line, lw=1.0, label=label, zorder=2)
    axes.set_xscale('log')
    plain_log_ticks(axes.xaxis)
    axes.invert_xaxis()
    axes.set(xlabel='training images of the class (large to small)', ylabel='accuracy of the class [%]', ylim=(-3, 103),
             title='Accuracy against class size')
    legend_below(axes)
    return figure


@styled
def per_class_bars(result: Mapping[str, Any], class_names: Sequence[str] | None = None) -> Any:
    """Accuracy of every class, largest class first, above the class sizes.

    Args:
        result: Of :func:`timm_lt.evaluate.report`.
        class_names: Written under the bars where there are at most 40 classes (20 on a narrow figure).
    """
    counts = torch.tensor(result['train_images_per_class'])
    splits = ClassDistribution(counts).splits(result['split_rule'])
    order = torch.argsort(counts, descending=True, stable=True)
    accuracy = np.array([np.nan if a is None else a for a in result['per_class']], dtype=float)[order.numpy()]
    place = np.arange(len(counts))
    figure, (top, bottom) = new_figure(2, width=8.0, height=4.4, rows=2, height_ratios=(3, 1), sharex=True)
    for name in SPLIT_NAMES:
        _bars_of_split(top, bottom, name, splits[name][order].numpy(), accuracy, counts[order].numpy(), result[name])
    missing = np.isnan(accuracy)
    if missing.any():
        top.plot(place[missing], np.full(missing.sum(), 1.5), 'x', color=GREY, ms=4, label='no test image')
    top.set(ylim=(0, 100), ylabel='accuracy [%]', title='Accuracy of every class, largest class first')
    top.grid(axis='x', visible=False)
    bottom.grid(axis='x', visible=False)
    bottom.set_yscale('log')
    plain_log_ticks(bottom.yaxis, (1.0,) if counts.max() >= 50 * counts.min().clamp(min=1) else (1.0, 3.0))
    bottom.set(ylabel='training\nimages', xlim=(-0.8, len(counts) - 0.2))
    if class_names is not None and len(counts) <= (20 if is_narrow() else 40):
        _name_bars(bottom, [short(class_names[c]) for c in order.tolist()])
    else:
        bottom.set_xlabel('class, sorted by size')
    legend_below(top)
    return figure


@styled
def weight_norms(weight: Any, class_counts: Any, *, split_rule: str = 'gt100_lt20') -> Any:
    """Norm of each class's classifier weights, largest class first.

    Args:
        weight: Of the classifier, (C, D), or the norms themselves, (C,).
        class_counts: Training images per class, (C,).
        split_rule: As in :func:`timm_lt.evaluate.report`.
    """
    weight = torch.as_tensor(weight).detach().float().cpu()
    distribution = ClassDistribution(check_class_counts(class_counts, weight.shape[0], min_count=0))
    splits = distribution.splits(resolve_split_rule(distribution, split_rule))
    order = torch.argsort(distribution.counts, descending=True, stable=True)
    norms = weight.reshape(len(weight), -1).norm(dim=1)[order].numpy()
    figure, (axes,) = new_figure(1, width=5.4, height=3.5)
    axes.plot(norms, color=GREY, lw=1, zorder=1)
    for name in SPLIT_NAMES:
        place = splits[name][order].nonzero().flatten().numpy()
        if len(place):
            axes.plot(place, norms[place], SPLIT_MARKERS[name], color=SPLIT_COLORS[name], mec='white', mew=0.5, ms=5.5,
                      label=f'{name}: mean {norms[place].mean():.2f}', zorder=2)
    axes.set(ylim=(0, 1.12 * norms.max()), xlabel='class, sorted by size (large to small)',
             ylabel='norm of the weights', title='Classifier weight norms')
    axes.xaxis.get_major_locator().set_params(integer=True)
    legend_below(axes)
    return figure


def _marks_by_split(axes: Any, result: Any, size: np.ndarray, accuracy: np.ndarray, classes: np.ndarray) -> None:
    distribution = ClassDistribution(result['train_images_per_class'])
    for name, mask in distribution.splits(result['split_rule']).items():
        chosen = np.isin(classes, mask.nonzero().flatten().numpy())
        if chosen.any():
            axes.plot(
                size[chosen], accuracy[chosen], SPLIT_MARKERS[name], color=SPLIT_COLORS[name], ms=5.5, mec='white',
                mew=0.6, label=f'{name} ({classes_text(chosen.sum())})', zorder=3, clip_on=False)


def _bars_of_split(
        top: Any,
        bottom: Any,
        name: str,
        chosen: np.ndarray,
        accuracy: np.ndarray,
        counts: np.ndarray,
        mean: float | None,
) -> None:
    place = np.flatnonzero(chosen)
    if not len(place):
        return
    many = len(accuracy) > 200
    style = {'color': SPLIT_COLORS[name], 'hatch': '' if many else SPLIT_HATCHES[name], 'edgecolor': 'white',
             'linewidth': 0, 'width': 1.0 if many else 0.82}
    top.bar(place, accuracy[chosen], label=f'{name}: not tested' if mean is None else f'{name}: mean {mean:.1f}',
            **style)
    bottom.bar(place, counts[chosen], **style)
    if mean is not None:
        edges = [place[0] - 0.5, place[-1] + 0.5]
        top.plot(edges, [mean, mean], color='white', lw=2.0)
        top.plot(edges, [mean, mean], color=INK, lw=1.0, ls=(0, (4, 2)))


def _name_bars(axes: Any, names: Sequence[str]) -> None:
    axes.set_xticks(range(len(names)), names)
    if max(map(len, names)) * len(names) > (40 if is_narrow() else 90):
        axes.tick_params(axis='x', rotation=60)
        for label in axes.get_xticklabels():
            label.set_horizontalalignment('right')
            label.set_rotation_mode('anchor')


def _tested(result: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Training images, accuracies and numbers of the tested classes."""
    classes = np.array([c for c, a in enumerate(result['per_class']) if a is not None])
    size = np.maximum(np.array(result['train_images_per_class'])[classes], 0.7)  # a class without images, left of 1
    return size, np.array([result['per_class'][c] for c in classes], dtype=float), classes


def _running_mean(size: np.ndarray, accuracy: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian-weighted mean over log class size at each size that occurs; nothing is drawn between them."""
    log = np.log(size)
    width = max((log.max() - log.min()) / 8, 1e-3)
    grid = np.unique(log)
    if len(grid) > 200:
        grid = np.unique(np.quantile(log, np.linspace(0, 1, 200)))
    weights = np.exp(-0.5 * ((grid[:, None] - log) / width) ** 2)
    return np.exp(grid), (weights * accuracy).sum(1) / weights.sum(1)

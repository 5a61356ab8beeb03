"""Several runs side by side."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ....class_distribution import SPLIT_NAMES
from .rows import column, measured_part
from .style import (
    GREY,
    INK,
    RUN_COLORS,
    RUN_LINES,
    is_narrow,
    legend_below,
    legend_label,
    new_figure,
    styled,
    whole_epochs,
)


@styled
def split_bars(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Top-1 and split accuracies of several runs side by side, with intervals or deviations where known.

    Args:
        reports: Results of :func:`timm_lt.evaluate.report` or :func:`timm_lt.evaluate.merge_seeds`.
        names: Name of each run.
    """
    metrics = ('top1', 'balanced_accuracy', *SPLIT_NAMES)
    figure, (axes,) = new_figure(1, width=8.0, height=3.5)
    width = 0.8 / len(reports)
    for k, (result, name) in enumerate(zip(reports, names)):
        mean = result.get('mean', result)
        x = np.arange(len(metrics)) + (k - (len(reports) - 1) / 2) * width
        y = [mean.get(f) for f in metrics]
        light = k % 2 == 1
        axes.bar(x, [v or 0 for v in y], 0.92 * width, color=RUN_COLORS[k % len(RUN_COLORS)], edgecolor='white',
                 hatch='////' if light else '', linewidth=0, label=legend_label(name))
        for place, value, f in zip(x, y, metrics):
            if value is None:
                axes.text(place, 1, 'absent', rotation=90, ha='center', va='bottom', color=GREY, style='italic')
                continue
            low, high = _error(result, f, value)
            axes.plot([place] * 2, [low, high], color=INK, lw=1.1)
            if len(reports) <= (2 if is_narrow() else 5):
                axes.text(place, high + 1.2, f'{value:.1f}', ha='center', va='bottom', fontsize=7.5)
    axes.set_xticks(range(len(metrics)), [f.replace('_accuracy', '').replace('top1', 'top-1') for f in metrics])
    axes.set(ylabel='accuracy [%]', ylim=(0, 105), title='Accuracy by split')
    axes.grid(axis='x', visible=False)
    axes.tick_params(axis='x', length=0)
    legend_below(axes)
    return figure


@styled
def compare_curves(summaries: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Any:
    """Top-1 and split accuracies over the epochs of several runs."""
    figure, panels = new_figure(4, width=10.4, height=2.8, columns=4)
    prefix, part = measured_part(summaries)
    for axes, key in zip(panels, ('top1', *SPLIT_NAMES)):
        for k, (rows, name) in enumerate(zip(summaries, names)):
            x, y = column(rows, prefix + key)
            if len(x):
                axes.plot(x, y, color=RUN_COLORS[k % len(RUN_COLORS)], ls=RUN_LINES[k % len(RUN_LINES)],
                          label=legend_label(name))
        axes.set(title='top-1' if key == 'top1' else key)
        whole_epochs(axes)
        if not axes.lines:
            axes.text(0.5, 0.5, 'absent', transform=axes.transAxes, ha='center', color=GREY, style='italic')
    panels[0].set_ylabel(f'accuracy [%]{part}')
    legend_below(panels[0])
    return figure


def _error(result: Mapping[str, Any], name: str, value: float) -> tuple[float, float]:
    if 'std' in result:
        deviation = result['std'].get(name) or 0.0
        return max(value - deviation, 0.0), min(value + deviation, 100.0)
    found = (result.get('confidence') or {}).get(name)
    return tuple(found) if found else (value, value)

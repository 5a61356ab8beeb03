"""Loss along random directions from the trained weights."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from .style import ALERT, FLOOR, GREY, INK, SPLIT_COLORS, SPLIT_MARKERS, label_ends, new_figure, plain_log_ticks, styled


@styled
def landscape_lines(line: Mapping[str, Any]) -> Any:
    """Loss along a random direction, one line per split.

    Args:
        line: Of :func:`timm_lt.evaluate.landscape.loss_line`.
    """
    figure, (axes,) = new_figure(1, width=5.6, height=3.5)
    ends = []
    curves = {name: np.maximum(np.array(losses, dtype=float), FLOOR) for name, losses in line['loss'].items()}
    for name, losses in curves.items():
        color = SPLIT_COLORS.get(name, GREY)
        axes.plot(line['steps'], losses, color=color, marker=SPLIT_MARKERS.get(name), ms=4, mec='white', mew=0.5,
                  markevery=max(1, len(losses) // 10), ls='-' if name in SPLIT_COLORS else ':')
        ends.append((losses[-1], line['steps'][-1], name, color))
    finite = np.concatenate([v[np.isfinite(v)] for v in curves.values()])
    if finite.size and finite.max() > 50 * finite.min():
        axes.set_yscale('log')
        plain_log_ticks(axes.yaxis)
    label_ends(axes, ends)
    axes.axvline(0, color=GREY, lw=0.8, zorder=1)
    axes.set(xlabel='step along a filter-normalised random direction', ylabel='loss', title='Loss landscape by split')
    return figure


@styled
def landscape_surfaces(surface: Mapping[str, Any]) -> Any:
    """Contours of the loss over two random directions, one panel per split, one scale.

    Args:
        surface: Of :func:`timm_lt.evaluate.landscape.loss_surface`.
    """
    splits = list(surface['loss'])
    columns = len(splits)
    figure, panels = new_figure(columns, width=2.9 * columns + 0.9, height=3.2, columns=columns, sharey=True)
    values = {name: np.log10(np.maximum(np.array(surface['loss'][name], dtype=float), FLOOR)) for name in splits}
    finite = np.concatenate([v[np.isfinite(v)] for v in values.values()])
    low, high = (finite.min(), finite.max()) if finite.size else (0.0, 1.0)
    levels = np.linspace(low, high if high > low else low + 1, 14)
    for axes, name in zip(panels, splits):
        drawn = axes.contourf(surface['steps'], surface['steps'], values[name].T, levels, cmap='bone_r', extend='both')
        axes.contour(surface['steps'], surface['steps'], values[name].T, levels, colors=INK, linewidths=0.4)
        axes.plot(0, 0, '+', color=ALERT, ms=9, mew=1.8)
        axes.set(title=name, xlabel='direction 1')
        axes.set_aspect('equal')
        axes.grid(visible=False)
    panels[0].set_ylabel('direction 2')
    from matplotlib.ticker import FuncFormatter
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.85, pad=0.015)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{10 ** v:.2g}'))
    bar.set_label('loss (one scale)')
    return figure

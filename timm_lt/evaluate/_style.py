"""The one style of all figures, and what they share.

Splits differ in lightness, marker and hatch, so that a grey print stays readable. Figures are built without pyplot: no
global state, no display.
"""

import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .._files import whole_file
from .._text import printable

INK, GREY, PALE = '#1f2328', '#8b929a', '#e4e7ea'
SPLIT_COLORS = {'many': '#17375e', 'medium': '#2f8f9d', 'few': '#f2a65a'}  # dark, middle, light
SPLIT_MARKERS = {'many': 'o', 'medium': 's', 'few': '^'}
SPLIT_HATCHES = {'many': '', 'medium': '', 'few': '////'}
RUN_COLORS = ('#17375e', '#d1603d', '#2f8f9d', '#b8a13a', '#7a5195', '#5b6770')
RUN_LINES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
FLOOR = 1e-3  # smaller losses are drawn as this: on a logarithmic scale they would hide all others
STYLE = {
    'font.size': 9.0, 'axes.titlesize': 9.5, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left',
    'axes.labelcolor': INK, 'axes.edgecolor': GREY, 'axes.linewidth': 0.8, 'text.color': INK,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'axes.axisbelow': True,
    'grid.color': PALE, 'grid.linewidth': 0.8, 'xtick.color': INK, 'ytick.color': INK, 'xtick.labelsize': 8.0,
    'ytick.labelsize': 8.0, 'legend.frameon': False, 'legend.fontsize': 8.0, 'lines.linewidth': 1.8,
    'hatch.linewidth': 0.6, 'figure.facecolor': 'white', 'savefig.facecolor': 'white', 'figure.dpi': 100,
    'text.parse_math': False, 'text.usetex': False,  # names of classes and runs may hold `$`, `\\` and `^`
}


def classes_text(number: int) -> str:
    """``'1 class'``, ``'2 classes'``."""
    return f'{number} class' if number == 1 else f'{number} classes'


def styled(draw: Callable) -> Callable:
    """Decorator: the style holds while a figure is drawn, and nowhere else."""
    @functools.wraps(draw)
    def inner(*args: Any, **kwargs: Any) -> Any:
        import matplotlib
        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return inner


def save(figure: Any, path: str | Path, dpi: int = 160) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path = Path(path)
    import matplotlib
    with matplotlib.rc_context(STYLE), whole_file(path) as temporary:  # ticks and hatches read it when they are drawn
        figure.savefig(temporary, format='png', dpi=dpi)
    return path


def new_figure(panels: int, *, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    from matplotlib.figure import Figure
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)[:panels]


def label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Names and last values right of the lines, pushed apart where they would overlap."""
    ends = [end for end in ends if np.isfinite(end[0])]
    if not ends:
        return
    low, high = axes.get_ylim()
    log = axes.get_yscale() == 'log'
    to = np.log10 if log else (lambda v: v)
    low, high = to(low), to(high)
    gap = 0.075 * (high - low)
    place = -np.inf
    for value, x, name, color in sorted(ends):
        place = max(to(value), place + gap)
        axes.annotate(
            f"{'top-1' if name == 'top1' else name} {value:.3g}", (x, value), (1.02, (place - low) / (high - low)),
            xycoords='data', textcoords='axes fraction', va='center', color=INK, fontsize=8, annotation_clip=False,
            arrowprops={'arrowstyle': '-', 'color': color, 'lw': 0.8, 'shrinkA': 1, 'shrinkB': 2})


def legend_below(axes: Any) -> None:
    """Names of the lines or bars under the figure, which grows where they take more than two rows."""
    handles, labels = axes.get_legend_handles_labels()
    columns = min(4 if sum(sorted(map(len, labels))[-4:]) < 80 else 2, max(1, len(labels)))
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.18 * max(0, -(-len(labels) // columns) - 2))
    axes.figure.legend(
        handles, labels, loc='outside lower center', ncols=columns, handlelength=1.8, columnspacing=1.6)


def plain_log_ticks(axis: Any, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    axis.set_major_locator(LogLocator(10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g}'))
    axis.set_minor_formatter(NullFormatter())


def blues() -> Any:
    from matplotlib.colors import LinearSegmentedColormap
    return LinearSegmentedColormap.from_list('ink', ['#ffffff', '#17375e'])


def short(name: object, length: int = 16) -> str:
    """A printable name of at most ``length`` characters."""
    name = printable(name)
    return name if len(name) <= length else name[:length - 1] + '…'


def legend_label(name: object) -> str:
    """A printable name for a legend, which leaves out labels that begin with ``_``."""
    name = printable(name)
    return f' {name}' if name.startswith('_') else name

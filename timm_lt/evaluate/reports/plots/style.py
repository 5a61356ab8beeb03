"""The one style of all plots, and the parts that they share.

Splits differ in lightness, marker and hatch, so that a grey print stays readable. Plots are built without pyplot: no
global state, no display.
"""

import functools
import io
import re
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

import numpy as np

from ...._files import whole_file
from ...._text import printable

INK, GREY, PALE, ALERT, RATE = '#1f2328', '#8b929a', '#e4e7ea', '#b3261e', '#8a6220'
SPLIT_COLORS = {'many': '#17375e', 'medium': '#2f8f9d', 'few': '#f2a65a'}  # dark, middle, light
SPLIT_MARKERS = {'many': 'o', 'medium': 's', 'few': '^'}
SPLIT_HATCHES = {'many': '', 'medium': '', 'few': '////'}
RUN_COLORS = ('#17375e', '#d1603d', '#2f8f9d', '#b8a13a', '#7a5195', '#5b6770')
RUN_LINES = ('-', '--', '-.', ':', (0, (5, 1, 1, 1, 1, 1)), (0, (1, 1)))
DARK = {  # colours of an SVG on a dark page
    '#ffffff': '#15191e', INK: '#e6e9ec', GREY: '#949ca5', PALE: '#2b3138', ALERT: '#ff7a6e', RATE: '#d9a95a',
    '#17375e': '#7fb0ea', '#2f8f9d': '#4fb3c1', '#d1603d': '#e8835f', '#7a5195': '#b08acb', '#5b6770': '#9aa7b1',
}
FLOOR = 1e-3  # smaller losses are drawn as this: on a logarithmic scale they would hide all others
STYLE = {
    'font.size': 9.0, 'axes.titlesize': 9.5, 'axes.titleweight': 'bold', 'axes.titlelocation': 'left',
    'axes.labelcolor': INK, 'axes.edgecolor': GREY, 'axes.linewidth': 0.8, 'text.color': INK,
    'axes.spines.top': False, 'axes.spines.right': False, 'axes.grid': True, 'axes.axisbelow': True,
    'grid.color': PALE, 'grid.linewidth': 0.8, 'xtick.color': INK, 'ytick.color': INK, 'xtick.labelsize': 8.0,
    'ytick.labelsize': 8.0, 'legend.frameon': False, 'legend.fontsize': 8.0, 'lines.linewidth': 1.8,
    'hatch.linewidth': 0.6, 'figure.facecolor': 'white', 'savefig.facecolor': 'white', 'figure.dpi': 100,
    'text.parse_math': False, 'text.usetex': False,  # names of classes and runs may hold `$`, `\\` and `^`
    'svg.fonttype': 'none', 'svg.hashsalt': 'timm_lt',
}
DPI = 160  # of PNG files
FALLBACK_FONTS = (  # for names that DejaVu Sans cannot draw, where installed
    'Noto Sans CJK JP', 'Noto Sans CJK SC', 'Noto Sans JP', 'Noto Sans SC', 'Source Han Sans', 'WenQuanYi Zen Hei',
    'Hiragino Sans', 'PingFang SC', 'Yu Gothic', 'Microsoft YaHei', 'Malgun Gothic', 'SimHei', 'Noto Sans Thai',
    'Noto Sans Devanagari', 'Noto Emoji', 'Arial Unicode MS', 'Unifont',
)
NARROW_WIDTH = 4.3  # inches: a phone
_narrow: ContextVar[bool] = ContextVar('narrow', default=False)


def styled(draw: Callable) -> Callable:
    """Decorator: the style holds while a figure is drawn, and nowhere else.

    The decorated function also takes ``narrow``: True lays the panels out below one another, for a phone.
    """
    @functools.wraps(draw)
    def inner(*args: Any, narrow: bool = False, **kwargs: Any) -> Any:
        token = _narrow.set(narrow)
        try:
            with style():
                return draw(*args, **kwargs)
        finally:
            _narrow.reset(token)

    return inner


@contextmanager
def style() -> Iterator[None]:
    """matplotlib's options of the plots; ticks and hatches read them when a figure is written."""
    import matplotlib
    options: dict[Any, Any] = {**STYLE, 'font.family': font_families()}  # matplotlib lists the names it allows as keys
    with matplotlib.rc_context(options):
        yield


def save(figure: Any, path: str | Path, dpi: int | None = None) -> Path:
    """Write a figure as PNG, whole or not at all."""
    path = Path(path)
    with style(), whole_file(path) as temporary:
        figure.savefig(temporary, format='png', dpi=dpi or DPI)
    return path


def to_svg(figure: Any) -> str:
    """A figure as SVG whose text stays text, and whose colours follow the light or dark scheme of the reader."""
    buffer = io.StringIO()
    with style(), warnings.catch_warnings():
        # the reader's fonts draw the text, not those of this machine
        warnings.filterwarnings('ignore', 'Glyph .* missing from font', UserWarning)
        figure.savefig(buffer, format='svg', metadata={'Date': None, 'Creator': None}, dpi=150)
    text = buffer.getvalue()
    text = text[text.index('<svg'):]
    names = {color: f'--c{k}' for k, color in enumerate(DARK)}
    pattern = re.compile('|'.join(DARK))
    text = pattern.sub(lambda found: f'var({names[found[0]]})', text)
    light = ''.join(f'{names[c]}:{c};' for c in DARK)
    dark = ''.join(f'{names[c]}:{d};' for c, d in DARK.items())
    rules = f'<style>:root{{{light}}}@media (prefers-color-scheme:dark){{:root{{{dark}}}}}</style>'
    start = text.index('>') + 1
    return text[:start] + rules + text[start:]


@functools.cache
def font_families() -> list[str]:
    """Fonts in the order in which matplotlib looks for a character."""
    from matplotlib.font_manager import fontManager
    installed = {font.name for font in fontManager.ttflist}
    return ['DejaVu Sans', *(name for name in FALLBACK_FONTS if name in installed), 'sans-serif']


def has_glyphs(text: str) -> bool:
    """Whether the installed fonts can draw every character of a text."""
    from matplotlib.font_manager import FontProperties, findfont, get_font
    fonts = [get_font(findfont(FontProperties(family=[name]))) for name in font_families()]
    return all(any(font.get_char_index(ord(character)) for font in fonts) for character in printable(text))


def new_figure(panels: int, *, width: float, height: float, rows: int = 1, columns: int = 1, **options: Any) -> Any:
    """A figure and its panels; a narrow one has two columns for four panels, else one."""
    from matplotlib.figure import Figure
    if _narrow.get():
        height_of_row = height / rows
        columns, rows = (2, 2) if (rows, columns) == (1, 4) else (1, rows * columns)
        height_of_row = max(height_of_row, 2.4) if rows > 1 and columns == 1 and 'height_ratios' not in options \
            else height_of_row
        width, height = NARROW_WIDTH, height_of_row * rows
    figure = Figure(figsize=(width, height), layout='constrained')
    axes = figure.subplots(rows, columns, squeeze=False, **options)
    return figure, list(axes.flat)[:panels]


def is_narrow() -> bool:
    return _narrow.get()


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
    room = 46 if _narrow.get() else 84  # characters of a line
    columns = min(4, max(1, len(labels)))
    while columns > 1 and columns * (4 + max(map(len, labels))) > room:
        columns -= 1
    width, height = axes.figure.get_size_inches()
    axes.figure.set_size_inches(width, height + 0.18 * max(0, -(-len(labels) // columns) - 2))
    axes.figure.legend(
        handles, labels, loc='outside lower center', ncols=columns, handlelength=1.8, columnspacing=1.6)


def plain_log_ticks(axis: Any, steps: Sequence[float] = (1.0, 2.0, 5.0)) -> None:
    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter
    axis.set_major_locator(LogLocator(10, subs=steps))
    axis.set_major_formatter(FuncFormatter(lambda v, _: f'{v:g}'))
    axis.set_minor_formatter(NullFormatter())


def whole_epochs(axes: Any) -> None:
    """Ticks of an axis of epochs at whole numbers."""
    axes.set_xlabel('epoch')
    axes.xaxis.get_major_locator().set_params(integer=True)


def classes_text(number: int) -> str:
    """``'1 class'``, ``'2 classes'``."""
    return f'{number} class' if number == 1 else f'{number} classes'


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

"""Curves over the epochs of a run, from ``summary.csv``."""

from collections.abc import Mapping, Sequence
from typing import Any

from ....class_distribution import SPLIT_NAMES
from .rows import column, measured_part
from .style import (
    GREY,
    INK,
    RATE,
    RUN_COLORS,
    RUN_LINES,
    SPLIT_COLORS,
    SPLIT_MARKERS,
    label_ends,
    legend_below,
    new_figure,
    plain_log_ticks,
    styled,
    whole_epochs,
)


@styled
def training_curves(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Loss, learning rate and accuracies over the epochs.

    Args:
        rows: Of ``summary.csv``, see :func:`timm_lt.evaluate.reports.runs.read_summary`.
    """
    figure, (left, right) = new_figure(2, width=9.0, height=3.2, columns=2)
    for key, label, style in (('train_loss', 'training', '-'), ('val_loss', 'validation', '--'),
                              ('eval_loss', 'evaluation', '--')):
        x, y = column(rows, key)
        if len(x):
            left.plot(x, y, style, color=INK if style == '-' else GREY, label=label, marker='o' if len(x) < 2 else None)
    left.set(ylabel='loss', title='Loss and learning rate')
    x, y = column(rows, 'lr')
    if len(x):
        rate = left.twinx()
        rate.plot(x, y, ':', color=RATE, lw=1.4)
        rate.set_ylabel('learning rate (dotted)', color=RATE)
        rate.spines['right'].set_visible(False)
        rate.grid(visible=False)
        rate.set_ylim(0, 1.05 * max(y) if max(y) > 0 else 1)
    if left.get_legend_handles_labels()[0]:
        left.legend(loc='upper right')
    ends = []
    prefix, part = measured_part([rows])
    for name in ('top1', *SPLIT_NAMES):
        x, y = column(rows, prefix + name)
        if not len(x):
            continue
        color = SPLIT_COLORS.get(name, INK)
        right.plot(x, y, color=color, lw=2.4 if name == 'top1' else 1.6, ls='-' if name == 'top1' else '--',
                   marker=SPLIT_MARKERS.get(name), ms=4.5, mec='white', mew=0.5, markevery=max(1, len(x) // 8))
        ends.append((y[-1], x[-1], name, color))
    label_ends(right, ends)
    right.set(ylabel='accuracy [%]', title=f'Accuracy{part}')
    for axes in (left, right):
        whole_epochs(axes)
    return figure


@styled
def gkp_inner_life(rows: Sequence[Mapping[str, Any]]) -> Any:
    """GKP and GSA at every epoch, as in figures 2, 5 and 6 of Chen et al., CVPR 2026.

    Three panels show feature quality by split, similarity of the classes' gradients to the batch's, and penalty with
    alpha. Three more show radii of the groups, their training images, and snapshots in the bank.

    Args:
        rows: Of the ``summary.csv`` of a run with ``--gkp``, see :func:`timm_lt.evaluate.reports.runs.read_summary`.
    """
    figure, panels = new_figure(6, width=10.4, height=5.4, rows=2, columns=3)
    quality, similarity, penalty, radii, sizes, bank = panels
    for axes, key, title in ((quality, 'quality', 'Feature quality'),
                             (similarity, 'gradient_similarity', 'Class gradient to batch gradient (cosine)')):
        for name in SPLIT_NAMES:
            x, y = column(rows, f'{key}_{name}')
            axes.plot(x, y, color=SPLIT_COLORS[name], marker=SPLIT_MARKERS[name], ms=4, mec='white', mew=0.5,
                      markevery=max(1, len(x) // 8), label=name)
        axes.set(title=title)
    legend_below(quality)
    x, y = column(rows, 'penalty')
    penalty.plot(x, y, color=INK)
    penalty.set(title='Penalty, and alpha (dotted)')
    alpha = penalty.twinx()
    alpha.plot(*column(rows, 'alpha'), ':', color=RATE, lw=1.4)
    alpha.spines['right'].set_visible(False)
    alpha.grid(visible=False)
    alpha.set_ylim(0, 1.05)
    for axes, key, title in ((radii, 'radii', 'Radius of each group, last step'),
                             (sizes, 'group_images', 'Training images of each group')):
        x, y = column(rows, key)
        values = [v if isinstance(v, (list, tuple)) else [v] for v in y]  # one group: a plain number
        for k in range(max(map(len, values), default=0)):
            points = [(e, v[k]) for e, v in zip(x, values) if k < len(v) and v[k]]  # without a radius, no point
            axes.plot([p[0] for p in points], [p[1] for p in points], color=RUN_COLORS[k % len(RUN_COLORS)],
                      ls=RUN_LINES[k % len(RUN_LINES)], lw=1.4)
        if any(v for row in values for v in row):
            axes.set_yscale('log')
            plain_log_ticks(axes.yaxis)
        axes.set(title=title)
    bank.step(*column(rows, 'bank_epochs'), where='mid', color=INK)
    bank.set(title='Snapshots in the bank', ylim=(0, None))
    for axes in panels:
        whole_epochs(axes)
    return figure

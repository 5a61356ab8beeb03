"""Figures of the reports. Every function returns a matplotlib figure; ``_style.save`` writes it."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch

from .._validate import check_class_counts
from ..class_distribution import SPLIT_NAMES, ClassDistribution
from ._style import (
    FLOOR,
    GREY,
    INK,
    RUN_COLORS,
    RUN_LINES,
    SPLIT_COLORS,
    SPLIT_HATCHES,
    SPLIT_MARKERS,
    blues,
    classes_text,
    label_ends,
    legend_below,
    legend_label,
    new_figure,
    plain_log_ticks,
    short,
    styled,
)
from .metrics import ECE_BINS, check_predictions, expected_calibration_error, predict, resolve_split_rule


@styled
def accuracy_by_class_size(reports: Mapping[str, Any] | Sequence[Mapping[str, Any]], names: Sequence[str] = ()) -> Any:
    """Per-class accuracy over the number of training images, with a running mean.

    Args:
        reports: One result of :func:`timm_lt.evaluate.report`, or several to lay over one another.
        names: Names of several runs.
    """
    reports = [reports] if isinstance(reports, Mapping) else list(reports)
    single = len(reports) == 1
    figure, (axes,) = new_figure(1, width=6.4, height=3.6)
    for k, result in enumerate(reports):
        x, y = _tested(result)
        if single:
            distribution = ClassDistribution(result['train_images_per_class'])
            for name, mask in distribution.splits(result['split_rule']).items():
                chosen = np.isin(x[2], mask.nonzero().flatten().numpy())
                if chosen.any():
                    axes.plot(
                        x[0][chosen], y[chosen], SPLIT_MARKERS[name], color=SPLIT_COLORS[name], ms=5.5, mec='white',
                        mew=0.6, label=f'{name} ({classes_text(chosen.sum())})', zorder=3)
        else:
            axes.plot(x[0], y, '.', color=RUN_COLORS[k % len(RUN_COLORS)], alpha=0.5, ms=6, mew=0)
        grid, smooth = _running_mean(x[0], y)
        label = 'running mean' if single else (legend_label(names[k]) if names else f'run {k + 1}')
        color = GREY if single else RUN_COLORS[k % len(RUN_COLORS)]
        axes.plot(grid, smooth, color=color, ls=RUN_LINES[k % len(RUN_LINES)], label=label, zorder=2)
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
        class_names: Written under the bars where there are at most 40 classes.
    """
    counts = torch.tensor(result['train_images_per_class'])
    splits = ClassDistribution(counts).splits(result['split_rule'])
    order = torch.argsort(counts, descending=True, stable=True)
    accuracy = np.array([np.nan if a is None else a for a in result['per_class']], dtype=float)[order.numpy()]
    place = np.arange(len(counts))
    figure, (top, bottom) = new_figure(2, width=8.0, height=4.4, rows=2, height_ratios=(3, 1), sharex=True)
    width = 0.82 if len(counts) <= 200 else 1.0
    for name in SPLIT_NAMES:
        chosen = splits[name][order].numpy()
        if not chosen.any():
            continue
        style = {'color': SPLIT_COLORS[name], 'hatch': SPLIT_HATCHES[name] if len(counts) <= 200 else '',
                 'edgecolor': 'white', 'linewidth': 0, 'width': width}
        mean = result[name]
        label = f'{name}: not tested' if mean is None else f'{name}: mean {mean:.1f}'
        top.bar(place[chosen], accuracy[chosen], label=label, **style)
        bottom.bar(place[chosen], counts[order].numpy()[chosen], **style)
        if mean is not None:
            edges = place[chosen]
            top.plot([edges[0] - 0.5, edges[-1] + 0.5], [mean, mean], color='white', lw=2.0)
            top.plot([edges[0] - 0.5, edges[-1] + 0.5], [mean, mean], color=INK, lw=1.0, ls=(0, (4, 2)))
    missing = np.isnan(accuracy)
    if missing.any():
        top.plot(place[missing], np.full(missing.sum(), 1.5), 'x', color=GREY, ms=4, label='no test image')
    top.set(ylim=(0, 100), ylabel='accuracy [%]', title='Accuracy of every class, largest class first')
    top.grid(axis='x', visible=False)
    bottom.grid(axis='x', visible=False)
    bottom.set_yscale('log')
    plain_log_ticks(bottom.yaxis, (1.0,) if counts.max() >= 50 * counts.min().clamp(min=1) else (1.0, 3.0))
    bottom.set(ylabel='training\nimages', xlim=(-0.8, len(counts) - 0.2))
    if class_names is not None and len(counts) <= 40:
        bottom.set_xticks(place, [short(class_names[c]) for c in order.tolist()])
        if max(len(short(n)) for n in class_names) * len(counts) > 90:
            bottom.tick_params(axis='x', rotation=60)
            for label in bottom.get_xticklabels():
                label.set_horizontalalignment('right')
                label.set_rotation_mode('anchor')
    else:
        bottom.set_xlabel('class, sorted by size')
    legend_below(top)
    return figure


@styled
def split_confusion(result: Mapping[str, Any]) -> Any:
    """Where the images of a split go: percent predicted as a class of each split."""
    figure, (axes,) = new_figure(1, width=3.9, height=3.5)
    table = result['split_confusion']
    values = np.array([[np.nan if table[t][p] is None else table[t][p] for p in SPLIT_NAMES] for t in SPLIT_NAMES])
    axes.imshow(np.nan_to_num(values), cmap=blues(), vmin=0, vmax=100)
    for i in range(3):
        for j in range(3):
            if np.isnan(values[i, j]):
                axes.text(j, i, 'absent' if j == 1 else '', ha='center', va='center', color=GREY, style='italic')
                continue
            axes.text(j, i, f'{values[i, j]:.1f}', ha='center', va='center', fontsize=11,
                      color='white' if values[i, j] > 55 else INK, weight='bold' if i == j else 'normal')
        axes.axhline(i + 0.5, color='white', lw=2)
        axes.axvline(i + 0.5, color='white', lw=2)
    axes.set_xticks(range(3), SPLIT_NAMES)
    axes.set_yticks(range(3), [f"{n}\n({result['splits'][n]['images']})" for n in SPLIT_NAMES])
    axes.set(xlabel='predicted a class of', ylabel='true class in (test images)', title='Confusion of splits [%]')
    axes.grid(visible=False)
    axes.tick_params(length=0)
    for spine in axes.spines.values():
        spine.set_visible(False)
    return figure


@styled
def reliability(logits: Any, targets: Any, class_counts: Any, *, split_rule: str = 'gt100_lt20') -> Any:
    """Accuracy over confidence, overall and per split; a bar under the diagonal is over-confident.

    Args:
        logits: (N, C).
        targets: (N,).
        class_counts: Training images per class, (C,).
        split_rule: As in :func:`timm_lt.evaluate.report`.
    """
    logits, targets = check_predictions(logits, targets)
    distribution = ClassDistribution(check_class_counts(class_counts, logits.shape[1], min_count=0))
    splits = distribution.splits(resolve_split_rule(distribution, split_rule))
    outcome = predict(logits, targets)
    targets, right = targets.cpu(), outcome['rank'] == 0
    confidence = outcome['confidence'].double()
    usable = torch.isfinite(confidence)
    panels = {'all': usable, **{name: usable & mask[targets] for name, mask in splits.items()}}
    figure, grid = new_figure(4, width=9.6, height=2.9, columns=4, sharey=True)
    edges = np.linspace(0, 1, ECE_BINS + 1)
    for axes, (name, chosen) in zip(grid, panels.items()):
        axes.plot([0, 100], [0, 100], color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
        axes.set(xlim=(0, 100), ylim=(0, 100), xlabel='confidence [%]', title=name)
        axes.set_aspect('equal')
        if not bool(chosen.any()):
            axes.text(50, 75, 'absent', ha='center', va='center', color=GREY, style='italic')
            continue
        c, r = confidence[chosen].numpy(), right[chosen].numpy()
        bins = np.clip(np.digitize(c, edges) - 1, 0, ECE_BINS - 1)
        number = np.bincount(bins, minlength=ECE_BINS)
        filled = number > 0
        accuracy = 100 * np.bincount(bins, weights=r, minlength=ECE_BINS)[filled] / number[filled]
        mean = 100 * np.bincount(bins, weights=c, minlength=ECE_BINS)[filled] / number[filled]
        left = 100 * edges[:-1][filled]
        width = 100 / ECE_BINS
        color = SPLIT_COLORS.get(name, '#5b6770')
        axes.bar(left, accuracy, width, align='edge', color=color, edgecolor='white', linewidth=0.8, zorder=2)
        axes.plot(mean, accuracy, 'o', color='white', mec=INK, ms=3.6, mew=0.9, zorder=4)
        for x, a, m in zip(left, accuracy, mean):  # the gap between what is claimed and what holds
            axes.plot([x + width / 2] * 2, [a, m], color='#b3261e', lw=1.6, zorder=3, solid_capstyle='butt')
        ece = expected_calibration_error(confidence[chosen], right[chosen])
        axes.text(0.04, 0.96, f'ECE {ece:.1f}\n{len(c)} images', transform=axes.transAxes, va='top',
                  bbox={'facecolor': 'white', 'edgecolor': 'none', 'alpha': 0.85, 'pad': 1.5}, zorder=6)
    grid[0].set_ylabel('accuracy [%]')
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
    figure, (axes,) = new_figure(1, width=6.4, height=3.2)
    axes.plot(norms, color=GREY, lw=1, zorder=1)
    for name in SPLIT_NAMES:
        place = splits[name][order].nonzero().flatten().numpy()
        if len(place):
            axes.plot(place, norms[place], SPLIT_MARKERS[name], color=SPLIT_COLORS[name], mec='white', mew=0.5, ms=5.5,
                      label=f'{name}: mean {norms[place].mean():.2f}', zorder=2)
    axes.set(ylim=(0, 1.12 * norms.max()), xlabel='class, sorted by size (large to small)',
             ylabel='norm of the weights', title='Classifier weight norms')
    legend_below(axes)
    return figure


@styled
def training_curves(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Loss, learning rate and accuracies over the epochs.

    Args:
        rows: Of ``summary.csv``, see :func:`timm_lt.evaluate.html_report.read_summary`.
    """
    figure, (left, right) = new_figure(2, width=9.0, height=3.2, columns=2)
    for key, label, style in (('train_loss', 'training', '-'), ('val_loss', 'validation', '--'),
                              ('eval_loss', 'evaluation', '--')):
        x, y = _column(rows, key)
        if len(x):
            left.plot(x, y, style, color=INK if style == '-' else GREY, label=label, marker='o' if len(x) < 2 else None)
    left.set(xlabel='epoch', ylabel='loss', title='Loss and learning rate')
    x, y = _column(rows, 'lr')
    if len(x):
        rate = left.twinx()
        rate.plot(x, y, ':', color='#b07d2b', lw=1.4)
        rate.set_ylabel('learning rate (dotted)', color='#8a6220')
        rate.spines['right'].set_visible(False)
        rate.grid(visible=False)
        rate.set_ylim(0, 1.05 * max(y) if max(y) > 0 else 1)
    if left.get_legend_handles_labels()[0]:
        left.legend(loc='upper right')
    ends = []
    prefix, part = _measured_part([rows])
    for name in ('top1', *SPLIT_NAMES):
        x, y = _column(rows, prefix + name)
        if not len(x):
            continue
        color = SPLIT_COLORS.get(name, INK)
        right.plot(x, y, color=color, lw=2.4 if name == 'top1' else 1.6, ls='-' if name == 'top1' else '--',
                   marker=SPLIT_MARKERS.get(name), ms=4.5, mec='white', mew=0.5, markevery=max(1, len(x) // 8))
        ends.append((y[-1], x[-1], name, color))
    label_ends(right, ends)
    right.set(xlabel='epoch', ylabel='accuracy [%]', title=f'Accuracy{part}')
    for axes in (left, right):
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def gkp_inner_life(rows: Sequence[Mapping[str, Any]]) -> Any:
    """What GKP and GSA measured at every epoch: the figures 2, 5 and 6 of Chen et al., CVPR 2026, for one's own run.

    Feature quality by split, similarity of the classes' gradients to that of the batch, penalty and alpha, radii of the
    groups, training images of the groups, and snapshots in the bank.

    Args:
        rows: Of the ``summary.csv`` of a run with ``--gkp``, see :func:`timm_lt.evaluate.runs.read_summary`.
    """
    figure, panels = new_figure(6, width=10.4, height=5.4, rows=2, columns=3)
    quality, similarity, penalty, radii, sizes, bank = panels
    for axes, key, title in ((quality, 'quality', 'Feature quality'),
                             (similarity, 'gradient_similarity', 'Class gradient to batch gradient (cosine)')):
        for name in SPLIT_NAMES:
            x, y = _column(rows, f'{key}_{name}')
            axes.plot(x, y, color=SPLIT_COLORS[name], marker=SPLIT_MARKERS[name], ms=4, mec='white', mew=0.5,
                      markevery=max(1, len(x) // 8), label=name)
        axes.set(title=title)
    legend_below(quality)
    x, y = _column(rows, 'penalty')
    penalty.plot(x, y, color=INK)
    penalty.set(title='Penalty, and alpha (dotted)')
    alpha = penalty.twinx()
    alpha.plot(*_column(rows, 'alpha'), ':', color='#b07d2b', lw=1.4)
    alpha.spines['right'].set_visible(False)
    alpha.grid(visible=False)
    alpha.set_ylim(0, 1.05)
    for axes, key, title in ((radii, 'radii', 'Radius of each group, last step'),
                             (sizes, 'group_images', 'Training images of each group')):
        x, y = _column(rows, key)
        values = [v if isinstance(v, (list, tuple)) else [v] for v in y]  # one group: a plain number
        for k in range(max(map(len, values), default=0)):
            points = [(e, v[k]) for e, v in zip(x, values) if k < len(v) and v[k]]  # without a radius, no point
            axes.plot([p[0] for p in points], [p[1] for p in points], color=RUN_COLORS[k % len(RUN_COLORS)],
                      ls=RUN_LINES[k % len(RUN_LINES)], lw=1.4)
        if any(v for row in values for v in row):
            axes.set_yscale('log')
            plain_log_ticks(axes.yaxis)
        axes.set(title=title)
    bank.step(*_column(rows, 'bank_epochs'), where='mid', color=INK)
    bank.set(title='Snapshots in the bank', ylim=(0, None))
    for axes in panels:
        axes.set_xlabel('epoch')
        axes.xaxis.get_major_locator().set_params(integer=True)
    return figure


@styled
def split_bars(reports: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Any:
    """Top-1 and split accuracies of several runs side by side, with intervals or deviations where known.

    Args:
        reports: Results of :func:`timm_lt.evaluate.report` or :func:`timm_lt.evaluate.merge_seeds`.
        names: Name of each run.
    """
    figures = ('top1', 'balanced_accuracy', *SPLIT_NAMES)
    figure, (axes,) = new_figure(1, width=8.0, height=3.5)
    width = 0.8 / len(reports)
    for k, (result, name) in enumerate(zip(reports, names)):
        mean = result.get('mean', result)
        x = np.arange(len(figures)) + (k - (len(reports) - 1) / 2) * width
        y = [mean.get(f) for f in figures]
        light = k % 2 == 1
        axes.bar(x, [v or 0 for v in y], 0.92 * width, color=RUN_COLORS[k % len(RUN_COLORS)], edgecolor='white',
                 hatch='////' if light else '', linewidth=0, label=legend_label(name))
        for place, value, f in zip(x, y, figures):
            if value is None:
                axes.text(place, 1, 'absent', rotation=90, ha='center', va='bottom', color=GREY, style='italic')
                continue
            low, high = _error(result, f, value)
            axes.plot([place] * 2, [low, high], color=INK, lw=1.1)
            if len(reports) <= 5:
                axes.text(place, high + 1.2, f'{value:.1f}', ha='center', va='bottom', fontsize=7.5)
    axes.set_xticks(range(len(figures)), [f.replace('_accuracy', '').replace('top1', 'top-1') for f in figures])
    axes.set(ylabel='accuracy [%]', ylim=(0, 105), title='Accuracy by split')
    axes.grid(axis='x', visible=False)
    axes.tick_params(axis='x', length=0)
    legend_below(axes)
    return figure


@styled
def compare_curves(summaries: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]) -> Any:
    """Top-1 and split accuracies over the epochs of several runs."""
    figure, panels = new_figure(4, width=10.4, height=2.8, columns=4)
    prefix, part = _measured_part(summaries)
    for axes, key in zip(panels, ('top1', *SPLIT_NAMES)):
        for k, (rows, name) in enumerate(zip(summaries, names)):
            x, y = _column(rows, prefix + key)
            if len(x):
                axes.plot(x, y, color=RUN_COLORS[k % len(RUN_COLORS)], ls=RUN_LINES[k % len(RUN_LINES)],
                          label=legend_label(name))
        axes.set(xlabel='epoch', title='top-1' if key == 'top1' else key)
        axes.xaxis.get_major_locator().set_params(integer=True)
        if not axes.lines:
            axes.text(0.5, 0.5, 'absent', transform=axes.transAxes, ha='center', color=GREY, style='italic')
    panels[0].set_ylabel(f'accuracy [%]{part}')
    legend_below(panels[0])
    return figure


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
        axes.plot(0, 0, '+', color='#b3261e', ms=9, mew=1.8)
        axes.set(title=name, xlabel='direction 1')
        axes.set_aspect('equal')
        axes.grid(visible=False)
    panels[0].set_ylabel('direction 2')
    from matplotlib.ticker import FuncFormatter
    bar = figure.colorbar(drawn, ax=list(panels), shrink=0.85, pad=0.015)
    bar.ax.yaxis.set_major_formatter(FuncFormatter(lambda v, _: f'{10 ** v:.2g}'))
    bar.set_label('loss (one scale)')
    return figure


def _tested(result: Mapping[str, Any]) -> tuple[Any, np.ndarray]:
    """Class sizes (and their logarithms, and the class numbers) and accuracies of the tested classes."""
    classes = np.array([c for c, a in enumerate(result['per_class']) if a is not None])
    size = np.maximum(np.array(result['train_images_per_class'])[classes], 0.7)  # a class without images, left of 1
    return (size, np.log(size), classes), np.array([result['per_class'][c] for c in classes], dtype=float)


def _running_mean(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Gaussian-weighted mean over log class size, a sixth of the range wide."""
    log = np.log(x)
    width = max((log.max() - log.min()) / 8, 1e-3)
    grid = np.linspace(log.min(), log.max(), 60)
    weights = np.exp(-0.5 * ((grid[:, None] - log) / width) ** 2)
    return np.exp(grid), (weights * y).sum(1) / weights.sum(1)


def _error(result: Mapping[str, Any], name: str, value: float) -> tuple[float, float]:
    if 'std' in result:
        deviation = result['std'].get(name) or 0.0
        return max(value - deviation, 0.0), min(value + deviation, 100.0)
    found = (result.get('confidence') or {}).get(name)
    return tuple(found) if found else (value, value)


def _measured_part(summaries: Sequence[Sequence[Mapping[str, Any]]]) -> tuple[str, str]:
    """Prefix of the accuracies that all runs have in ``summary.csv``, and the words for it.

    A validation part where all runs have one, else the batches of training; the test part is not read before the end.
    """
    for prefix, part in (('val_', ', validation part'), ('train_', ', training batches')):
        if all(len(_column(rows, prefix + 'top1')[0]) for rows in summaries):
            return prefix, part
    return '', ''


def _column(rows: Sequence[Mapping[str, Any]], key: str) -> tuple[list[float], list[float]]:
    pairs = [(r.get('epoch', k), r[key]) for k, r in enumerate(rows) if r.get(key) is not None]
    return [p[0] for p in pairs], [p[1] for p in pairs]

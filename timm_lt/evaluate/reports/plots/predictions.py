"""Confusion of splits, and reliability of confidences."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...._validate import check_class_counts
from ....class_distribution import SPLIT_NAMES, ClassDistribution
from ...metrics import (
    ECE_BINS,
    calibration_bins,
    check_predictions,
    expected_calibration_error,
    predict,
    resolve_split_rule,
)
from .style import ALERT, GREY, INK, SPLIT_COLORS, blues, new_figure, styled


@styled
def split_confusion(result: Mapping[str, Any]) -> Any:
    """Percent of the images of a split that are predicted as a class of each split."""
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
    targets, right, confidence = targets.cpu(), outcome['rank'] == 0, outcome['confidence']
    figure, panels = new_figure(4, width=9.6, height=2.9, columns=4, sharey=True)
    for axes, name in zip(panels, ('all', *SPLIT_NAMES)):
        chosen = slice(None) if name == 'all' else splits[name][targets]
        _reliability_panel(axes, name, confidence[chosen], right[chosen])
    panels[0].set_ylabel('accuracy [%]')
    return figure


def _reliability_panel(axes: Any, name: str, confidence: Any, right: Any) -> None:
    axes.plot([0, 100], [0, 100], color=GREY, lw=1, ls=(0, (4, 3)), zorder=1)
    axes.set(xlim=(0, 100), ylim=(0, 100), xlabel='confidence [%]')
    axes.set_aspect('equal')
    axes.set_title(name, loc='left')
    images, broken = len(confidence), int(confidence.isnan().sum())
    if images == broken:
        axes.text(50, 75, 'not finite' if images else 'absent', ha='center', va='center', color=GREY, style='italic')
        return
    ece = expected_calibration_error(confidence, right)
    shown = f'{broken} not finite' if ece is None else f'ECE {ece:.1f}'
    axes.set_title(shown, loc='right', fontsize=8, weight='normal')
    axes.set_xlabel(f'confidence [%], {images} images')
    bins = {key: value.numpy() for key, value in calibration_bins(confidence, right).items()}
    filled = bins['images'] > 0
    accuracy, mean = 100 * bins['accuracy'][filled], 100 * bins['confidence'][filled]
    width = 100 / ECE_BINS
    left = width * np.flatnonzero(filled)
    axes.bar(left, accuracy, width, align='edge', color=SPLIT_COLORS.get(name, '#5b6770'), edgecolor='white',
             linewidth=0.8, zorder=2)
    axes.plot(mean, accuracy, 'o', color='white', mec=INK, ms=3.6, mew=0.9, zorder=4, clip_on=False)
    for x, a, m in zip(left, accuracy, mean):  # the gap between confidence and accuracy
        axes.plot([x + width / 2] * 2, [a, m], color=ALERT, lw=1.6, zorder=3, solid_capstyle='butt')

#!/usr/bin/env python3
"""Draw the picture of the README: accuracy by class size of some rows of a results file.

``python benchmarks/before_after.py --output docs/images/before_after.png`` reads ``accuracy_quick/results.json``.
"""

import argparse
import json
from pathlib import Path

import matplotlib
import numpy as np

matplotlib.use('Agg')
import matplotlib.pyplot as plt

RESULTS = Path(__file__).parent / 'results' / 'accuracy_quick' / 'results.json'
GROUPS = {'many': 'many images', 'medium': 'medium', 'few': 'few images', 'top1': 'all classes'}
ROWS = {
    'ce': 'cross-entropy', 'balanced_softmax': 'balanced softmax',
    'ours': 'balanced softmax, cosine classifier, small batches'}
COLORS = ('#9aa2aa', '#2f8f9d', '#17375e')


def figures(rows: list[dict], name: str) -> tuple[np.ndarray, np.ndarray]:
    """Mean and standard deviation over the seeds, in the order of ``GROUPS``, in percent."""
    values = np.array([[row[group] for group in GROUPS] for row in rows if row['row'] == name], dtype=float)
    return values.mean(0), values.std(0, ddof=1)


def draw(results: dict, output: Path) -> None:
    figure, axes = plt.subplots(figsize=(7.2, 2.9), dpi=120)
    width = 0.8 / len(ROWS)
    for k, (name, label) in enumerate(ROWS.items()):
        mean, deviation = figures(results['rows'], name)
        place = np.arange(len(GROUPS)) + (k - (len(ROWS) - 1) / 2) * width
        axes.bar(place, mean, width * 0.94, color=COLORS[k], label=label)
        axes.errorbar(place, mean, deviation, fmt='none', ecolor='#1f2328', lw=0.8, capsize=2)
        for x, value, top in zip(place, mean, mean + deviation):
            axes.text(x, top + 1.5, f'{value:.0f}', ha='center', fontsize=8)
    axes.set_xticks(range(len(GROUPS)), GROUPS.values())
    axes.set_ylabel('test accuracy, %')
    axes.set_ylim(0, 100)
    axes.spines[['top', 'right']].set_visible(False)
    axes.legend(loc='upper right', frameon=False, fontsize=9)
    figure.tight_layout()
    output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(output)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--results', type=Path, default=RESULTS)
    parser.add_argument('--output', type=Path, required=True)
    args = parser.parse_args()
    draw(json.loads(args.results.read_text()), args.output)


if __name__ == '__main__':
    main()

"""Comparison of runs: recipes with their seeds, tests against the baseline, and the reasons why runs do not compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..._text import printable
from ..metrics.significance import mark
from .runs import METRICS, group_runs, load_run, measured_by, significance_of

COLUMNS = (*METRICS, ('worst_class', 'worst class'), ('ece', 'ECE'))
MEASURED = {
    'split_rule': 'split rule', 'train_images_per_class': 'training class sizes',
    'num_images': 'number of test images', 'test_part': 'test part', 'dataset': 'data set',
}


@dataclass
class Comparison:
    """Recipes side by side; the first is the baseline.

    Attributes:
        groups: Recipes, see :func:`group_runs`.
        tests: p-values of each recipe against the baseline, see :func:`significance_of`.
        warnings: Sentences that say why metrics are not comparable.
    """
    groups: list[dict[str, Any]]
    tests: list[dict[str, Any]]
    warnings: list[str]

    @property
    def firsts(self) -> list[Mapping[str, Any]]:
        """``metrics.json`` of the first seed of each recipe."""
        return [g['runs'][0]['metrics'] for g in self.groups]

    @property
    def best(self) -> dict[str, float]:
        """Best mean of each column in which recipes differ: the lowest ECE, the highest accuracy."""
        found = {}
        for key, _ in COLUMNS:
            values = [g['merged']['mean'][key] for g in self.groups if g['merged']['mean'][key] is not None]
            if len(set(values)) > 1:
                found[key] = min(values) if key == 'ece' else max(values)
        return found


def compare_runs(run_dirs: Sequence[str | Path], *, bootstrap: int = 2000, seed: int = 0) -> Comparison:
    """Compare run folders, see :func:`write_comparison`."""
    return compare_groups(group_runs([load_run(d) for d in run_dirs]), bootstrap=bootstrap, seed=seed)


def compare_groups(groups: list[dict[str, Any]], *, bootstrap: int = 2000, seed: int = 0) -> Comparison:
    """Compare recipes of :func:`group_runs`; the first is the baseline."""
    tests: list[dict[str, Any]] = [{}, *(significance_of(groups[0], g, bootstrap, seed) for g in groups[1:])]
    return Comparison(groups, tests, _warnings(groups))


def comparison_text(comparison: Comparison) -> str:
    """The table and the warnings of a comparison for a terminal."""
    head = ['recipe', 'seeds', *(label for _, label in COLUMNS)]
    lines = [head]
    for group, test in zip(comparison.groups, comparison.tests):
        merged, line = group['merged'], [printable(group['name']), str(len(group['runs']))]
        for key, _ in COLUMNS:
            mean, std = merged['mean'][key], merged['std'][key]
            spread = '' if std is None else f' ± {std:.2f}'
            line.append('absent' if mean is None else f'{mean:.2f}{spread}{mark(test.get(key))}')
        lines.append(line)
    widths = [max(map(len, column)) for column in zip(*lines)]
    rows = ['  '.join([line[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(line[1:], widths[1:]))])
            for line in lines]
    how = sorted({t['how'] for t in comparison.tests if t})
    if how:
        rows.append(f"* p < 0.05, ** p < 0.01, *** p < 0.001 against the first row ({'; '.join(how)})")
    return '\n'.join([*rows, *(f'warning: {printable(w)}' for w in comparison.warnings), ''])


def _warnings(groups: Sequence[Mapping[str, Any]]) -> list[str]:
    firsts = [g['runs'][0]['metrics'] for g in groups]
    measured = [measured_by(f) for f in firsts]
    found = []
    differ = [label for key, label in MEASURED.items() if len({str(m[key]) for m in measured if m[key]}) > 1]
    if differ:
        found.append(f"The runs differ in {', '.join(differ)}: their metrics are not comparable.")
    if len({m['transductive'] for m in measured}) > 1:
        read = ', '.join(g['name'] for g, m in zip(groups, measured) if m['transductive'])
        found.append(f'The metrics of {read} are transductive, their correction read the unlabelled test set as a '
                     f'whole: not comparable with the inductive ones.')
    if len({f.get('num_parameters') for f in firsts}) > 1:
        found.append('The runs use networks of different size, see the table.')
    return found

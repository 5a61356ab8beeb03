"""HTML page that compares runs: table with significance marks, metrics, protocols."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from ..._files import write_text
from ..metrics.significance import mark
from . import plots
from .comparison import COLUMNS, Comparison, compare_runs
from .html import escape, note, page, picture, table, title_of
from .protocol import parameters_of, protocol_link, protocol_of, rules
from .runs import merge_corrected

STARS = (
    '* p &lt; 0.05, ** p &lt; 0.01, *** p &lt; 0.001, not corrected for the number of comparisons. A test over images '
    'says that two trained networks differ; that two methods differ needs several seeds.')


def write_comparison(
        run_dirs: Sequence[str | Path],
        path: str | Path,
        *,
        bootstrap: int = 2000,
        seed: int = 0,
) -> Path:
    """Write a page that compares runs; the first is the baseline of the others.

    Runs measured alike whose ``args.yaml`` differ in the seed only are merged to mean and deviation. Options that
    compute nothing, such as paths, may differ too. Marks: recipes with two seeds or more on both sides are compared
    over seeds (Welch's t-test). Single runs are compared over the test images (paired bootstrap).

    Args:
        run_dirs: Run folders.
        path: The page.
        bootstrap: Resamples of the paired bootstrap.
        seed: Of the bootstrap.

    Returns:
        Path of the page.

    Raises:
        FileNotFoundError: If a folder has no ``metrics.json``.
        ValueError: If a file of a run is damaged.
    """
    write_text(path, comparison_page(compare_runs(run_dirs, bootstrap=bootstrap, seed=seed)))
    return Path(path)


def comparison_page(comparison: Comparison) -> str:
    """HTML of a comparison."""
    groups, firsts = comparison.groups, comparison.firsts
    names = [g['name'] for g in groups]
    shown = [g['merged'] if len(g['runs']) > 1 else g['runs'][0]['metrics'] for g in groups]
    body = [f'<h1>Comparison of {len(groups)} recipes</h1>',
            f"<p class='lead'>{escape('Baseline: ' + names[0])} · split rule {escape(firsts[0]['split_rule'])} · "
            f"{protocol_link('protocol')}</p>"]
    body += [note(escape(warning)) for warning in comparison.warnings]
    body.append(_table(comparison))
    body.append(picture(
        partial(plots.split_bars, shown, names), 'accuracy by split',
        'Lines: standard deviation over seeds, or the bootstrap interval of a single run where it was computed.', True))
    if all(f['num_classes'] == firsts[0]['num_classes'] for f in firsts):
        body.append(picture(
            partial(plots.accuracy_by_class_size, firsts, names), 'accuracy by class size',
            'Each dot is a class; first seed of each recipe.'))
    summaries = [g['runs'][0]['summary'] or [] for g in groups]
    if any(prefix + 'top1' in row for rows in summaries for row in rows for prefix in ('', 'val_', 'train_')):
        body.append('<h2>Training</h2>')
        body.append(picture(
            partial(plots.compare_curves, summaries, names), 'training curves', 'First seed of each recipe.', True))
    body.append('<h2>Protocol</h2>' + _protocol_table(groups) + rules())
    return page('Comparison', ''.join(body))


def _table(comparison: Comparison) -> str:
    best, rows = comparison.best, []
    for group, test in zip(comparison.groups, comparison.tests):
        metrics, merged, seeds = group['runs'][0]['metrics'], group['merged'], len(group['runs'])
        network = ' · '.join(filter(None, (metrics.get('model'), parameters_of(metrics.get('num_parameters')))))
        cells = [f"<td>{escape(group['name'])}<small>{escape(network)}</small></td><td>{seeds}</td>"]
        for key, _ in COLUMNS:
            mean = merged['mean'][key]
            is_best = mean is not None and mean == best.get(key)
            cells.append(_metric_cell(mean, merged['std'][key], mark(test.get(key)), is_best))
        rows.append(''.join(cells))
        if corrected := merge_corrected(group['runs']):
            label, merged = corrected
            cells = [f"<td>{escape(group['name'])}<small>with {escape(label)}</small></td><td>{seeds}</td>"]
            cells += [_metric_cell(merged['mean'][key], merged['std'][key]) for key, _ in COLUMNS]
            rows.append(''.join(cells))
    return table(['recipe', 'seeds', *(label for _, label in COLUMNS)], rows) + (
        f"<figcaption>{' '.join(_notes(comparison))}</figcaption>")


def _notes(comparison: Comparison) -> list[str]:
    notes = ['Percent; bold: best of the column, corrections apart.']
    how = sorted({t['how'] for t in comparison.tests if t})
    if how:
        notes.append(f"Marks: differs from the baseline, {'; '.join(how)}; {STARS}")
    for group, test in zip(comparison.groups, comparison.tests):
        if 'mcnemar' in test:
            found = test['mcnemar']
            notes.append(
                f"McNemar, {escape(group['name'])}: right where the baseline is wrong {found['second_only']}, "
                f"the other way round {found['first_only']}, p {_p_value(found['p_value'])}.")
    return notes


def _p_value(value: float) -> str:
    return '&lt; 0.0001' if value < 1e-4 else f'= {value:.2g}'


def _metric_cell(mean: float | None, std: float | None, stars: str = '', best: bool = False) -> str:
    if mean is None:
        return "<td class='absent'>absent</td>"
    spread = f'<small>± {std:.2f}</small>' if std is not None else ''
    bold = " class='best'" if best else ''
    return f'<td{bold}>{mean:.2f}{f"<sup>{stars}</sup>" if stars else ""}{spread}</td>'


def _protocol_table(groups: Sequence[Mapping[str, Any]]) -> str:
    facts = [protocol_of(g['runs'][0]['metrics']) for g in groups]
    for g, f in zip(groups, facts):
        seeds = [r['metrics'].get('seed') for r in g['runs']]
        f['seed'] = ', '.join(map(str, seeds)) if any(s is not None for s in seeds) else None
    rows = []
    for key in dict.fromkeys(k for f in facts for k in f):
        values = [f.get(key) for f in facts]
        if any(v not in (None, '') for v in values):
            if len(values) > 1 and len(set(map(str, values))) == 1:
                cells = f"<td class='text' colspan={len(values)}><span>{escape(values[0])}</span></td>"
            else:
                cells = ''.join(f"<td class='text'>{escape(v)}</td>" for v in values)
            rows.append(f'<td>{escape(title_of(key))}</td>{cells}')
    return table(['', *(escape(g['name']) for g in groups)], rows, 'text')

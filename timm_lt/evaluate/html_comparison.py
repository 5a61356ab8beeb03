"""HTML page that compares runs: table with significance marks, figures, protocols."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._files import write_text
from . import plots
from ._html import escape, p_value, page, parameters_of, picture, protocol_of, title_of, to_png
from .runs import FIGURES, group_runs, load_run, measured_by, merge_corrected, significance_of
from .significance import mark


def write_comparison(
        run_dirs: Sequence[str | Path],
        path: str | Path,
        *,
        bootstrap: int = 2000,
        seed: int = 0,
) -> Path:
    """Write a page that compares runs; the first is what the others are compared with.

    Runs measured alike whose ``args.yaml`` differ in the seed only (or in where and how the run was carried out) are
    merged to mean and deviation. Marks: recipes with two seeds or more on both sides are compared over seeds (Welch's
    t-test); single runs over the test images (paired bootstrap).

    Args:
        run_dirs: Run folders.
        path: The page.
        bootstrap: Resamples of the paired bootstrap.
        seed: Of the bootstrap.

    Returns:
        Where the page is.
    """
    groups = group_runs([load_run(d) for d in run_dirs])
    write_text(path, comparison_page(groups, bootstrap, seed))
    return Path(path)


def comparison_page(groups: Sequence[Mapping[str, Any]], bootstrap: int = 2000, seed: int = 0) -> str:
    """HTML of several groups of runs, see :func:`write_comparison`."""
    names = [g['name'] for g in groups]
    firsts = [g['runs'][0]['metrics'] for g in groups]
    shown = [g['merged'] if len(g['runs']) > 1 else g['runs'][0]['metrics'] for g in groups]
    tests = [{}] + [significance_of(groups[0], g, bootstrap, seed) for g in groups[1:]]
    body = [f'<h1>Comparison of {len(groups)} recipes</h1>',
            f"<p class='lead'>{escape('Baseline: ' + names[0])} · split rule {escape(firsts[0]['split_rule'])}</p>"]
    measured = [measured_by(f) for f in firsts]
    labels = {'split_rule': 'split rule', 'train_images_per_class': 'training class sizes',
              'num_images': 'number of test images', 'test_part': 'test part', 'dataset': 'data set'}
    differ = [label for key, label in labels.items() if len({str(m[key]) for m in measured if m[key]}) > 1]
    if differ:
        body.append(f"<p class='note'>The runs differ in {', '.join(differ)}: their figures are not comparable.</p>")
    if len({m['transductive'] for m in measured}) > 1:
        read = ', '.join(name for name, m in zip(names, measured) if m['transductive'])
        body.append(f"<p class='note'>The figures of {escape(read)} are transductive, their correction read the "
                    'unlabelled test set as a whole: not comparable with the inductive ones.</p>')
    if len({f.get('num_parameters') for f in firsts}) > 1:
        body.append("<p class='note'>The runs use networks of different size, see the table.</p>")
    body.append(_comparison_table(groups, tests))
    body.append(picture(
        {'bars': to_png(plots.split_bars(shown, names))}, 'bars',
        'Lines: standard deviation over seeds, or the bootstrap interval of a single run where it was computed.'))
    if all(f['num_classes'] == firsts[0]['num_classes'] for f in firsts):
        figure = plots.accuracy_by_class_size(firsts, names)
        body.append(picture({'size': to_png(figure)}, 'size', 'Each dot is a class; first seed of each recipe.'))
    summaries = [g['runs'][0]['summary'] or [] for g in groups]
    if any(r.get(k) is not None for rows in summaries for r in rows for k, _ in FIGURES):
        body.append('<h2>Training</h2>')
        curves = {'curves': to_png(plots.compare_curves(summaries, names))}
        body.append(picture(curves, 'curves', 'First seed of each recipe.'))
    body.append('<h2>Protocol</h2>' + _protocol_table(groups))
    return page('Comparison', ''.join(body))


def _comparison_table(groups: Sequence[Mapping[str, Any]], tests: Sequence[Mapping[str, Any]]) -> str:
    columns = (*FIGURES, ('worst_class', 'worst class'), ('ece', 'ECE'))
    best = {}
    for key, _ in columns:
        values = [g['merged']['mean'][key] for g in groups if g['merged']['mean'][key] is not None]
        if len(set(values)) > 1:
            best[key] = min(values) if key == 'ece' else max(values)
    rows = []
    for g, test in zip(groups, tests):
        metrics = g['runs'][0]['metrics']
        network = ' · '.join(filter(None, (metrics.get('model'), parameters_of(metrics.get('num_parameters')))))
        cells = [f"<td>{escape(g['name'])}<small>{escape(network)}</small></td><td>{len(g['runs'])}</td>"]
        for key, _ in columns:
            mean = g['merged']['mean'][key]
            best_one = mean is not None and mean == best.get(key)
            cells.append(_figure_cell(mean, g['merged']['std'][key], mark(test.get(key)), best_one))
        rows.append(f"<tr>{''.join(cells)}</tr>")
        if corrected := merge_corrected(g['runs']):
            label, merged = corrected
            cells = [f"<td>{escape(g['name'])}<small>with {escape(label)}</small></td><td>{len(g['runs'])}</td>"]
            cells += [_figure_cell(merged['mean'][key], merged['std'][key]) for key, _ in columns]
            rows.append(f"<tr>{''.join(cells)}</tr>")
    head = ''.join(f'<th>{label}</th>' for _, label in columns)
    how = sorted({t['how'] for t in tests if t})
    notes = ['Percent; bold: best of the column, corrections apart.']
    if how:
        notes.append(f"Marks: differs from the baseline, {'; '.join(how)}; * p &lt; 0.05, ** p &lt; 0.01, *** p &lt; "
                     '0.001, not corrected for the number of comparisons. A test over images says that two trained '
                     'networks differ; that two methods differ needs several seeds.')
    for g, test in zip(groups, tests):
        if 'mcnemar' in test:
            found = test['mcnemar']
            notes.append(
                f"McNemar, {escape(g['name'])}: right where the baseline is wrong {found['second_only']}, "
                f"the other way round {found['first_only']}, p {p_value(found['p_value'])}.")
    return (f"<div class='scroll'><table><tr><th>recipe</th><th>seeds</th>{head}</tr>{''.join(rows)}</table></div>"
            f"<figcaption>{' '.join(notes)}</figcaption>")


def _figure_cell(mean: float | None, std: float | None, stars: str = '', best: bool = False) -> str:
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
    keys = list(dict.fromkeys(k for f in facts for k in f))
    rows = []
    for key in keys:
        values = [f.get(key) for f in facts]
        if any(v not in (None, '') for v in values):
            cells = ''.join(f"<td class='text'>{escape(v)}</td>" for v in values)
            rows.append(f'<tr><td>{escape(title_of(key))}</td>{cells}</tr>')
    head = ''.join(f"<th class='text'>{escape(g['name'])}</th>" for g in groups)
    return f"<div class='scroll'><table><tr><th></th>{head}</tr>{''.join(rows)}</table></div>"

"""HTML page of one run, which a browser opens without anything else."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .._files import write_text
from ..class_distribution import SPLIT_NAMES, ClassDistribution
from . import _style, plots
from ._html import escape, facts_table, page, parameters_of, picture, protocol_of, title_of, to_png
from .runs import load_run


def run_figures(run: Mapping[str, Any]) -> dict[str, Any]:
    """The figures that a run of :func:`load_run` allows, by name."""
    metrics, rule = run['metrics'], run['metrics']['split_rule']
    counts = metrics['train_images_per_class']
    figures = {
        'accuracy_by_class_size': plots.accuracy_by_class_size(metrics),
        'per_class': plots.per_class_bars(metrics, run['class_names']),
    }
    if metrics.get('split_confusion'):
        figures['split_confusion'] = plots.split_confusion(metrics)
    if run['logits'] is not None:
        figures['reliability'] = plots.reliability(run['logits'], run['targets'], counts, split_rule=rule)
    if metrics.get('weight_norms'):
        figures['weight_norms'] = plots.weight_norms(metrics['weight_norms'], counts, split_rule=rule)
    if run['summary']:
        figures['training_curves'] = plots.training_curves(run['summary'])
        if 'bank_epochs' in run['summary'][-1]:
            figures['gkp_inner_life'] = plots.gkp_inner_life(run['summary'])
    landscape = metrics.get('landscape') or {}
    if landscape.get('line'):
        figures['landscape_line'] = plots.landscape_lines(landscape['line'])
    if landscape.get('surface'):
        figures['landscape_surface'] = plots.landscape_surfaces(landscape['surface'])
    return figures


def write_report(run_dir: str | Path, path: str | Path | None = None) -> Path:
    """Write the page of a run and its figures.

    Args:
        run_dir: The run folder; figures go to its ``plots/``.
        path: The page; None is ``run_dir/report.html``.

    Returns:
        Where the page is.
    """
    run = load_run(run_dir)
    path = Path(run_dir) / 'report.html' if path is None else Path(path)
    figures = {name: (to_png(figure), figure) for name, figure in run_figures(run).items()}
    for name, (png, _) in figures.items():
        target = Path(run_dir) / 'plots' / f'{name}.png'
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(png)
    write_text(path, run_page(run, {name: png for name, (png, _) in figures.items()}))
    return path


def run_page(run: Mapping[str, Any], images: Mapping[str, bytes]) -> str:
    """HTML of one run; ``images`` are PNG bytes by figure name."""
    m = run['metrics']
    lead = [m.get('model'), parameters_of(m.get('num_parameters')), f"{m['num_images']} test images",
            f"{m['num_classes']} classes", f"split rule {m['split_rule']}",
            None if m.get('seed') is None else f"seed {m['seed']}"]
    body = [f"<h1>{escape(run['name'])}</h1>", f"<p class='lead'>{escape(' · '.join(filter(None, lead)))}</p>"]
    if m.get('transductive'):
        body.append(
            f"<p class='note'><b>Transductive.</b> {escape(m.get('posthoc'))} read the unlabelled test set as a whole; "
            'these figures are not comparable with inductive ones.</p>')
    if m.get('non_finite'):
        body.append(
            f"<p class='note'>{m['non_finite']} images have scores that are NaN or infinite; they count as wrong.</p>")
    body.append(_tiles(m))
    body.append(_further_figures(m))
    if m.get('corrected'):
        body.append('<h2>With the post-hoc correction</h2>' + _corrected(m))
    body.append('<h2>Accuracy by class size</h2>')
    body.append(picture(images, 'accuracy_by_class_size', 'Each mark is a class.'))
    body.append(picture(images, 'per_class', 'Dashed: mean of the split.'))
    pair = [picture(images, 'split_confusion', 'Percent of the test images of a row.'),
            picture(images, 'weight_norms', '')]
    body.append(f"<div class='pair'>{''.join(pair)}</div>")
    if 'reliability' in images:
        body.append('<h2>Calibration</h2>')
        body.append(picture(
            images, 'reliability', 'Bars: accuracy of the images of a confidence. Red: gap to what the network claims; '
            'red above a bar is over-confident. ECE in percent, 15 bins.'))
    if m.get('open_set'):
        body.append('<h2>Open set</h2>' + _open_set(m['open_set']))
    landscape = m.get('landscape') or {}
    if landscape:
        body.append('<h2>Loss landscape</h2>' + _curvature(landscape))
        body.append(f"<div class='pair'>{picture(images, 'landscape_line', '')}</div>")
        body.append(picture(images, 'landscape_surface', 'Red cross: the trained weights.'))
    if 'training_curves' in images:
        body.append('<h2>Training</h2>' + picture(images, 'training_curves', ''))
        body.append(picture(
            images, 'gkp_inner_life', 'Of the training images only. Groups and penalty begin with the first grouping.'))
    body.append('<h2>Protocol</h2>' + facts_table(protocol_of(m)))
    body.append('<h2>Classes</h2>' + _class_table(m, run['class_names']))
    if run['args']:
        body.append(f"<details><summary>All options of the run</summary>{facts_table(run['args'])}</details>")
    return page(run['name'], ''.join(body))


def _tiles(m: Mapping[str, Any]) -> str:
    confidence = m.get('confidence') or {}
    tiles = []
    for key, label in (('top1', 'top-1'), *[(n, n) for n in SPLIT_NAMES], ('balanced_accuracy', 'balanced'),
                       ('worst_class', 'worst class'), ('ece', 'ECE'), ('top5', 'top-5')):
        value = m.get(key)
        shown = "<b class='absent'>absent</b>" if value is None else f'<b>{value:.1f}</b>'
        small = ''
        if confidence.get(key):
            small = '95%: {:.1f} to {:.1f}'.format(*confidence[key])
        if key == 'worst_class':
            small = escape(m.get('worst_class_name') or f"class {m.get('worst_class_index')}")
        kind = key if key in SPLIT_NAMES else 'other'
        if key in SPLIT_NAMES:
            split = m['splits'][key]
            label = f"{label} · {_style.classes_text(split['classes'])}"
        tiles.append(f"<div class='tile {kind}'><span>{label}</span>{shown}<small>{small}</small></div>")
    return f"<div class='tiles'>{''.join(tiles)}</div>"


def _further_figures(m: Mapping[str, Any]) -> str:
    figures = [('harmonic_mean', 'harmonic mean'), ('geometric_mean', 'geometric mean'), ('macro_f1', 'macro-F1'),
               *[(f'ece_{n}', f'ECE {n}') for n in SPLIT_NAMES]]
    head = ''.join(f'<th>{label}</th>' for _, label in figures)
    cells = ''.join(_cell(m.get(key), '.2f') for key, _ in figures)
    return ("<div class='scroll'><table><tr><th></th>" + head + f'</tr><tr><td>further figures</td>{cells}</tr></table>'
            '</div><figcaption>Harmonic and geometric mean are over the accuracies of the classes.</figcaption>')


def _corrected(m: Mapping[str, Any]) -> str:
    corrected = m['corrected']
    figures = [('top1', 'top-1'), ('balanced_accuracy', 'balanced'), *[(n, n) for n in SPLIT_NAMES], ('ece', 'ECE')]
    head = ''.join(f'<th>{label}</th>' for _, label in figures)
    rows = ''.join(
        f"<tr><td>{escape(name)}</td>{''.join(_cell(row.get(key), '.2f') for key, _ in figures)}</tr>"
        for name, row in (('as trained', m), (corrected['label'], corrected)))
    note = ''
    if corrected['transductive']:
        note = ("<p class='note'><b>Transductive.</b> The correction read the unlabelled test set as a whole; its "
                'figures are not comparable with inductive ones.</p>')
    return (f"{note}<div class='scroll'><table><tr><th></th>{head}</tr>{rows}</table></div>"
            f"<figcaption>Fitted on {escape(corrected['fitted_on'])}. All else on this page is as trained."
            '</figcaption>')


def _open_set(found: Any) -> str:
    results = found if isinstance(found, list) else [found]
    split_keys = [k for k in ('top1', *SPLIT_NAMES) if any(k in r for r in results)]
    head = ('score', 'F (OLTR)', 'F (rejected known not counted)', *[k.replace('top1', 'top-1') for k in split_keys],
            'AUROC', 'FPR@95', 'OSCR', 'threshold')
    titles = ''.join(f'<th>{h}</th>' for h in head) + "<th class='text'>chosen by</th>"
    rows = []
    for r in results:
        values = [r['score'], f"{r['f_measure_oltr']:.3f}", f"{r['f_measure_without_rejected']:.3f}"]
        values += ['absent' if r.get(k) is None else f'{r[k]:.1f}' for k in (*split_keys, 'auroc', 'fpr95', 'oscr')]
        values.append(f"{r['threshold']:.4g}")
        cells = ''.join(f'<td>{escape(v)}</td>' for v in values)
        rows.append(f"<tr>{cells}<td class='text'>{escape(r['threshold_rule'])}</td></tr>")
    r = results[0]
    predictions = f" Predictions: {escape(r['predictions'])}." if r.get('predictions') else ''
    return (f"<p>{r['num_known']} images of known classes, {r['num_unknown']} of unknown ones.{predictions}</p>"
            f"<div class='scroll'><table><tr>{titles}</tr>{''.join(rows)}</table></div>"
            + ('<figcaption>Accuracies are of the known images; a rejected one counts as wrong.</figcaption>'
               if split_keys else ''))


def _curvature(landscape: Mapping[str, Any]) -> str:
    keys = [k for k in ('loss', 'sharpness', 'top_eigenvalue', 'trace', 'feature_quality') if landscape.get(k)]
    if not keys:
        return ''
    splits = [n for n in ('all', *SPLIT_NAMES) if any(n in landscape[k] for k in keys)]
    rows = []
    for k in keys:
        label = title_of(k) + (f" at rho {landscape['rho']:g}" if k == 'sharpness' and 'rho' in landscape else '')
        values = [landscape[k].get(n) for n in splits]
        cells = ''.join(_cell(v, '.4g') for v in values)
        rows.append(f'<tr><td>{escape(label)}</td>{cells}</tr>')
    table = f"<table><tr><th></th>{''.join(f'<th>{n}</th>' for n in splits)}</tr>{''.join(rows)}</table>"
    return table + _cosines(landscape)


def _cosines(landscape: Mapping[str, Any]) -> str:
    tables = []
    for key, title in (
            ('gradient_cosine', 'Cosine between the gradients of splits'),
            ('class_gradient_cosine', "Mean cosine between classes' gradients of the classifier"),
    ):
        if not landscape.get(key):
            continue
        rows = ''.join(
            f"<tr><td>{one}</td>{''.join(_cell(row[two], '.3f') for two in SPLIT_NAMES)}</tr>"
            for one, row in landscape[key].items())
        head = ''.join(f'<th>{n}</th>' for n in SPLIT_NAMES)
        tables.append(f'<div><h3>{title}</h3><table><tr><th></th>{head}</tr>{rows}</table></div>')
    return f"<div class='pair'>{''.join(tables)}</div>"


def _cell(value: float | None, form: str) -> str:
    return "<td class='absent'>absent</td>" if value is None else f'<td>{value:{form}}</td>'


def _class_table(m: Mapping[str, Any], names: Sequence[str] | None) -> str:
    counts = m['train_images_per_class']
    splits = ClassDistribution(counts).splits(m['split_rule'])
    rows = []
    for c in sorted(range(len(counts)), key=lambda c: -counts[c]):
        accuracy = m['per_class'][c]
        split = next(n for n in SPLIT_NAMES if bool(splits[n][c]))
        shown = "<td class='absent'>not tested</td>" if accuracy is None else (
            f"<td style='text-align:left'><span class='number'>{accuracy:.1f}</span>"
            f"<span class='bar {split}' style='width:{1.6 * accuracy:.0f}px'></span></td>")
        tested = (m.get('test_images_per_class') or [''] * len(counts))[c]
        rows.append(f'<tr><td>{escape(names[c] if names else c)}</td><td class="text">{split}</td><td>{counts[c]}</td>'
                    f'<td>{tested}</td>{shown}</tr>')
    table = ('<table><tr><th>class</th><th class="text">split</th><th>training images</th><th>test images</th>'
             f"<th style='text-align:left'>accuracy [%]</th></tr>{''.join(rows)}</table>")
    if len(rows) <= 20:
        return table
    return f'<details><summary>Table of {len(rows)} classes, largest first</summary>{table}</details>'

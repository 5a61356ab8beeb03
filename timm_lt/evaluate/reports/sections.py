"""Sections of the page of a run, each HTML made of ``metrics.json``."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from ...class_distribution import SPLIT_NAMES
from .classes import heat_table
from .html import cell, escape, note, table, title_of
from .plots.style import classes_text


def warnings(m: Mapping[str, Any]) -> str:
    """Notes that a reader must see before the metrics."""
    found = ''
    if m.get('transductive'):
        found += note(
            f"<b>Transductive.</b> {escape(m.get('posthoc'))} read the unlabelled test set as a whole; these metrics "
            'are not comparable with inductive ones.')
    if m.get('non_finite'):
        found += note(f"{m['non_finite']} images have scores that are NaN or infinite; they count as wrong.")
    return found


def tiles(m: Mapping[str, Any]) -> str:
    confidence = m.get('confidence') or {}
    found = []
    for key, label in (('top1', 'top-1'), *[(n, n) for n in SPLIT_NAMES], ('balanced_accuracy', 'balanced'),
                       ('worst_class', 'worst class'), ('ece', 'ECE'), ('top5', 'top-5')):
        value = m.get(key)
        shown = "<b class='absent'>absent</b>" if value is None else f'<b>{value:.1f}</b>'
        small = '95%: {:.1f} to {:.1f}'.format(*confidence[key]) if confidence.get(key) else ''
        if key == 'worst_class':
            small = _worst(m)
        kind = key if key in SPLIT_NAMES else 'other'
        if key in SPLIT_NAMES:
            label = f"{label} · {classes_text(m['splits'][key]['classes'])}"
        found.append(f"<div class='tile {kind}'><span>{label}</span>{shown}<small>{small}</small></div>")
    return f"<div class='tiles'>{''.join(found)}</div>"


def _worst(m: Mapping[str, Any]) -> str:
    """Name of the class with the lowest accuracy, or how many classes share it."""
    ties = sum(a == m.get('worst_class') for a in m['per_class'])
    return f'shared by {ties} classes' if ties > 1 else escape(
        m.get('worst_class_name') or f"class {m.get('worst_class_index')}")


def further_metrics(m: Mapping[str, Any]) -> str:
    columns = [('harmonic_mean', 'harmonic mean'), ('geometric_mean', 'geometric mean'), ('macro_f1', 'macro-F1'),
               *[(f'ece_{n}', f'ECE {n}') for n in SPLIT_NAMES]]
    return table([label for _, label in columns], [''.join(cell(m.get(key)) for key, _ in columns)], 'even') + (
        '<figcaption>Harmonic and geometric mean are over the accuracies of the classes.</figcaption>')


def with_correction(m: Mapping[str, Any]) -> str:
    corrected = m['corrected']
    columns = [('top1', 'top-1'), ('balanced_accuracy', 'balanced'), *[(n, n) for n in SPLIT_NAMES], ('ece', 'ECE')]
    rows = [f'<td>{escape(name)}</td>' + ''.join(cell(row.get(key)) for key, _ in columns)
            for name, row in (('as trained', m), (corrected['label'], corrected))]
    warning = ''
    if corrected['transductive']:
        warning = note('<b>Transductive.</b> The correction read the unlabelled test set as a whole; its metrics are '
                       'not comparable with inductive ones.')
    return warning + table(['', *(label for _, label in columns)], rows) + (
        f"<figcaption>Fitted on {escape(corrected['fitted_on'])}. All else on this page is as trained.</figcaption>")


def variants(m: Mapping[str, Any]) -> str:
    columns = [('top1', 'top-1'), ('balanced_accuracy', 'balanced'), *[(n, n) for n in SPLIT_NAMES], ('ece', 'ECE'),
               ('validation', 'on validation')]
    rows = [f"<td>{escape(row['label'])}{' (this page)' if row['reported'] else ''}</td>"
            + ''.join(cell(row.get(key)) for key, _ in columns) for row in m['variants']]
    return table(['', *(label for _, label in columns)], rows)


def split_confusion(m: Mapping[str, Any]) -> str:
    confusion = m['split_confusion']
    values = np.array([[confusion[t][p] for p in SPLIT_NAMES] for t in SPLIT_NAMES], dtype=float)
    names = [f"{n}<br><small>{m['splits'][n]['images']} images</small>" for n in SPLIT_NAMES]
    return '<h3>Confusion of splits</h3>' + heat_table(values, names, SPLIT_NAMES) + (
        '<figcaption>Percent of the test images of a row, predicted as a class of a column.</figcaption>')


def open_set(found: Any) -> str:
    results = found if isinstance(found, list) else [found]
    split_keys = [k for k in ('top1', *SPLIT_NAMES) if any(k in r for r in results)]
    head = ('score', 'F (OLTR)', 'F (rejected known not counted)', *[k.replace('top1', 'top-1') for k in split_keys],
            'AUROC', 'FPR@95', 'OSCR', 'threshold', 'chosen by')
    rows = []
    for r in results:
        values = [r['score'], f"{r['f_measure_oltr']:.3f}", f"{r['f_measure_without_rejected']:.3f}"]
        values += ['absent' if r.get(k) is None else f'{r[k]:.1f}' for k in (*split_keys, 'auroc', 'fpr95', 'oscr')]
        values.append(f"{r['threshold']:.4g}")
        cells = ''.join(f'<td>{escape(v)}</td>' for v in values)
        rows.append(f"{cells}<td class='text'>{escape(r['threshold_rule'])}</td>")
    r = results[0]
    predictions = f" Predictions: {escape(r['predictions'])}." if r.get('predictions') else ''
    return (
        f"<p>{r['num_known']} images of known classes, {r['num_unknown']} of unknown ones.{predictions}</p>"
        + table(head, rows, text=['chosen by'])
        + ('<figcaption>Accuracies are of the known images; a rejected one counts as wrong.</figcaption>'
           if split_keys else ''))


def curvature(landscape: Mapping[str, Any]) -> str:
    keys = [k for k in ('loss', 'sharpness', 'top_eigenvalue', 'trace', 'feature_quality') if landscape.get(k)]
    if not keys:
        return ''
    splits = [n for n in ('all', *SPLIT_NAMES) if any(n in landscape[k] for k in keys)]
    rows = []
    for k in keys:
        label = title_of(k) + (f" at rho {landscape['rho']:g}" if k == 'sharpness' and 'rho' in landscape else '')
        rows.append(f'<td>{escape(label)}</td>' + ''.join(cell(landscape[k].get(n), '.4g') for n in splits))
    return table(['', *splits], rows) + _cosines(landscape)


def _cosines(landscape: Mapping[str, Any]) -> str:
    tables = []
    for key, title in (
            ('gradient_cosine', 'Cosine between the gradients of splits'),
            ('class_gradient_cosine', "Mean cosine between classes' gradients of the classifier"),
    ):
        if landscape.get(key):
            rows = [f'<td>{one}</td>' + ''.join(cell(row[two], '.3f') for two in SPLIT_NAMES)
                    for one, row in landscape[key].items()]
            tables.append(f"<div><h3>{title}</h3>{table(['', *SPLIT_NAMES], rows)}</div>")
    return f"<div class='pair'>{''.join(tables)}</div>"

"""Metrics of single classes: a table that sorts and searches, the same as CSV, and the confusion of classes."""

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ...class_distribution import SPLIT_NAMES, ClassDistribution
from .html import escape, table
from .plots.style import short

MATRIX_UP_TO = 20  # classes; of more, the largest confusions are listed
LISTED = 15  # confusions
COLUMNS = ('class', 'split', 'training images', 'test images', 'accuracy', 'precision', 'F1')


def class_rows(m: Mapping[str, Any], names: Sequence[str] | None) -> list[dict[str, Any]]:
    """Name, split, sizes and metrics of each class, largest class first; an undefined metric is None."""
    counts = m['train_images_per_class']
    splits = ClassDistribution(counts).splits(m['split_rule'])
    missing = [None] * len(counts)
    columns = [m.get(key) or missing for key in (
        'test_images_per_class', 'per_class', 'precision_per_class', 'f1_per_class')]
    rows = []
    for c in sorted(range(len(counts)), key=lambda c: -counts[c]):
        split = next(n for n in SPLIT_NAMES if bool(splits[n][c]))
        name = names[c] if names else f'class {c}'
        rows.append(dict(zip(COLUMNS, (name, split, counts[c], *(column[c] for column in columns)))))
    return rows


def class_table(rows: Sequence[Mapping[str, Any]]) -> str:
    """HTML of :func:`class_rows` with a search field."""
    body = []
    for row in rows:
        tested = '' if row['test images'] is None else row['test images']
        cells = [f"<td>{escape(row['class'])}</td><td class='text'>{row['split']}</td>",
                 f"<td>{row['training images']}</td><td>{tested}</td>"]
        for key in ('accuracy', 'precision', 'F1'):
            value = row[key]
            if value is None:
                word = 'not tested' if key == 'accuracy' else 'undefined'
                cells.append(f"<td class='absent' data-v=''>{word}</td>")
                continue
            bar = ''
            if key == 'accuracy':
                bar = f"<span class='bar {row['split']}'><i style='width:{value:.0f}%'></i></span>"
            cells.append(f"<td data-v='{value:.4f}'>{value:.1f}{bar}</td>")
        body.append(f"<tr>{''.join(cells)}</tr>")
    head = ''.join(f"<th{' class=text' if h == 'split' else ''}>{h}</th>" for h in COLUMNS)
    return (
        "<input type='search' placeholder='search a class' aria-label='search a class' data-table='classes'>"
        f"<div class='tall'><table class='sortable classes' id='classes'><thead><tr>{head}</tr></thead>"
        f"<tbody>{''.join(body)}</tbody></table></div>"
        '<figcaption>Percent; accuracy is the recall of the class. A click on a heading sorts. Precision is undefined '
        'for a class that is never predicted.</figcaption>')


def class_csv(rows: Sequence[Mapping[str, Any]]) -> bytes:
    """:func:`class_rows` as CSV; an undefined metric is an empty cell."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, lineterminator='\n')
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode('utf-8', 'replace')


def confusion_counts(predicted: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Wrong pairs of true and predicted class with their images, (K, 3), most images first.

    Args:
        predicted: Predicted classes, (N,), -1 for none.
        targets: True classes, (N,).
    """
    wrong = (predicted >= 0) & (predicted != targets)
    pairs, images = np.unique(np.stack([targets, predicted], 1)[wrong], axis=0, return_counts=True)
    return np.column_stack([pairs, images])[np.argsort(-images, kind='stable')]


def confusion(run: Mapping[str, Any]) -> str:
    """HTML of the confusion of classes: a matrix of few classes, of more the largest confusions."""
    pairs = confusion_counts(run['predicted'], run['targets'])
    m = run['metrics']
    tested = np.bincount(run['targets'], minlength=m['num_classes'])
    plain = run['class_names'] or [f'class {c}' for c in range(m['num_classes'])]
    names = [escape(n) for n in plain]
    if m['num_classes'] <= MATRIX_UP_TO:
        return _matrix(m, pairs, tested, names, [escape(short(n, 12)) for n in plain])
    rows = [
        f"<td>{names[true]}</td><td class='text'>{names[predicted]}</td><td>{images}</td>"
        f'<td>{100 * images / tested[true]:.1f}</td>' for true, predicted, images in pairs[:LISTED].tolist()]
    if not rows:
        return '<p>Every image is predicted as its class.</p>'
    head = ('true class', 'predicted class', 'images', '% of the class')
    return table(head, rows, text=['predicted class']) + (
        f'<figcaption>The {len(rows)} largest confusions of {len(pairs)}.</figcaption>')


def _matrix(
        m: Mapping[str, Any],
        pairs: np.ndarray,
        tested: np.ndarray,
        names: Sequence[str],
        heads: Sequence[str],
) -> str:
    values = np.zeros((len(names), len(names)))
    for true, predicted, images in pairs.tolist():
        values[true, predicted] = 100 * images / tested[true]
    for c, accuracy in enumerate(m['per_class']):
        values[c, c] = np.nan if accuracy is None else accuracy
    order = sorted(range(len(names)), key=lambda c: -m['train_images_per_class'][c])
    rows, columns = [names[c] for c in order], [heads[c] for c in order]
    return heat_table(values[np.ix_(order, order)], rows, columns, 'names') + (
        '<figcaption>Percent of the test images of a row, predicted as the class of a column. Largest class first.'
        '</figcaption>')


def heat_table(values: np.ndarray, rows: Sequence[str], columns: Sequence[str], kind: str = '') -> str:
    """Percentages as a table whose cells are shaded; names are HTML, NaN is absent, kind 'names' sets heads upright."""
    head = ''.join(f'<th><span>{name}</span></th>' for name in ('', *columns))
    lines = []
    for k, (name, line) in enumerate(zip(rows, values.tolist())):
        cells = []
        for j, value in enumerate(line):
            if value != value:
                cells.append("<td class='absent'>–</td>")
                continue
            marks = ('on', value > 63), ('own', j == k), ('zero', not value)
            shade = ' '.join(word for word, holds in marks if holds)
            shown = f'{value:.1f}' if 0 < value < 9.95 else f'{value:.0f}'
            cells.append(f"<td class='{shade}' style='background:rgb(var(--heat)/{value / 100:.2f})'>{shown}</td>")
        lines.append(f"<tr><td>{name}</td>{''.join(cells)}</tr>")
    return (
        f"<div class='scroll'><table class='heat {kind}'><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody>"
        '</table></div>')

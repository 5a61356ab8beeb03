"""Columns of the rows of ``summary.csv``."""

from collections.abc import Mapping, Sequence
from typing import Any

Rows = Sequence[Mapping[str, Any]]


def column(rows: Rows, key: str) -> tuple[list[float], list[Any]]:
    """Epochs, counted from 1, and values of the rows that have a value. The file counts epochs from 0."""
    pairs = [(r.get('epoch', k) + 1, r[key]) for k, r in enumerate(rows) if r.get(key) is not None]
    return [p[0] for p in pairs], [p[1] for p in pairs]


def measured_part(summaries: Sequence[Rows]) -> tuple[str, str]:
    """Prefix of the accuracies that all runs have in ``summary.csv``, and the words for it.

    A validation part where all runs have one, else the batches of training. The test part is not read before the end.
    """
    for prefix, part in (('val_', ', validation part'), ('train_', ', training batches')):
        if all(len(column(rows, prefix + 'top1')[0]) for rows in summaries):
            return prefix, part
    return '', ''

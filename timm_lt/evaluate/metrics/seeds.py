"""Metrics of several seeds of one recipe, merged to mean and standard deviation."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

MERGED = (
    'top1', 'top5', 'balanced_accuracy', 'many', 'medium', 'few', 'worst_class', 'harmonic_mean', 'geometric_mean',
    'macro_f1', 'ece', 'ece_many', 'ece_medium', 'ece_few',
)


def merge_seeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the metrics of several seeds.

    Args:
        reports: Results of :func:`report` (or ``metrics.json`` contents, whose ``seed`` is noted) of one recipe.

    Returns:
        ``num_seeds``, ``seeds``, ``split_rule``, ``per_class_mean``, and ``mean`` and ``std`` of each metric. The
        deviation divides by n - 1 and is None for one seed. A metric that a report lacks is None.

    Raises:
        ValueError: If there is no report or a seed appears twice. Also if reports differ in split rule, number of
            classes or test images, or post-hoc method.
    """
    reports = list(reports)
    if not reports:
        raise ValueError('merge_seeds needs at least one report')
    shared = {key: [r.get(key) for r in reports] for key in ('split_rule', 'num_classes', 'num_images')}
    shared['transductive'] = [bool(r.get('transductive')) for r in reports]
    shared['posthoc'] = [posthoc_method(r) for r in reports]
    for key, values in shared.items():
        if len(set(values)) > 1:
            raise ValueError(f'reports to merge must share {key}, got {sorted(set(map(str, values)))}')
    seeds = [r.get('seed') for r in reports]
    if twice := [s for s in seeds if s is not None and seeds.count(s) > 1]:
        raise ValueError(f'seed {twice[0]} appears {seeds.count(twice[0])} times; merge one report of each seed')
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for key in MERGED:
        present = [value for r in reports if (value := r.get(key)) is not None]
        known = len(present) == len(reports)
        mean[key] = float(np.mean(present)) if known else None
        std[key] = float(np.std(present, ddof=1)) if known and len(present) > 1 else None
    columns = zip(*(r['per_class'] for r in reports))
    return {
        'num_seeds': len(reports),
        'seeds': seeds,
        'split_rule': reports[0].get('split_rule'),
        'mean': mean,
        'std': std,
        'per_class_mean': [None if None in column else float(np.mean(column)) for column in columns],
    }


def posthoc_method(result: Mapping[str, Any]) -> str | None:
    """Method of the correction behind the metrics; each seed may have chosen its own strength."""
    return result['posthoc'].split(',')[0] if result.get('posthoc') else None

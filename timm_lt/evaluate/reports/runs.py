"""Run folders: reading them, and the runs of one recipe together.

A run folder holds ``metrics.json``, the result of :func:`timm_lt.evaluate.report` with ``seed``, ``model``,
``num_parameters``, ``protocol`` and more. As far as the run wrote them, it also holds ``summary.csv``,
``predictions.npz``, ``class_distribution.json``, ``mistakes.zip`` and ``args.yaml``. ``predictions.npz`` has
``targets``, and ``logits`` or ``predictions``.
"""

import csv
import json
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import torch

from ..._private_options import PRIVATE_OPTIONS, RECIPE_NOTES
from ...class_distribution import ClassDistribution
from ..metrics import check_predictions, compare, merge_seeds, posthoc_method, predict

NOT_OF_RECIPE = PRIVATE_OPTIONS | set(RECIPE_NOTES) | {'seed'}
MISTAKES = 'mistakes.zip'  # pictures of mistakes and ``mistakes.json``
METRICS = (
    ('top1', 'top-1'), ('balanced_accuracy', 'balanced'), ('many', 'many'), ('medium', 'medium'), ('few', 'few'),
)


def load_run(run_dir: str | Path) -> dict[str, Any]:
    """Contents of a run folder; what is missing is None.

    Raises:
        FileNotFoundError: If the folder has no ``metrics.json``.
        ValueError: If a file is damaged.
    """
    run_dir = Path(run_dir)
    if not (run_dir / 'metrics.json').is_file():
        raise FileNotFoundError(f'{run_dir} has no metrics.json; is it the folder of a finished run?')
    run: dict[str, Any] = {'name': run_dir.name or str(run_dir), 'path': run_dir}
    try:
        run['metrics'] = json.loads((run_dir / 'metrics.json').read_text(encoding='utf-8'))
        summary, predictions = run_dir / 'summary.csv', run_dir / 'predictions.npz'
        run['summary'] = read_summary(summary) if summary.is_file() else None
        run |= dict.fromkeys(('logits', 'predicted', 'targets', 'args', 'class_names', 'mistakes'))
        if predictions.is_file():
            with np.load(predictions, allow_pickle=False) as data:
                run['targets'] = data['targets'].astype(np.int64)
                run['logits'] = data['logits'] if 'logits' in data else None
                run['predicted'] = data['predictions'] if run['logits'] is None else _predicted(run)
        if (run_dir / 'class_distribution.json').is_file():
            run['class_names'] = ClassDistribution.from_json(run_dir / 'class_distribution.json').class_names
        if (run_dir / MISTAKES).is_file():
            run['mistakes'] = _mistakes(run_dir / MISTAKES)
        if (run_dir / 'args.yaml').is_file():
            import yaml
            run['args'] = yaml.safe_load((run_dir / 'args.yaml').read_text(encoding='utf-8'))
    except (ValueError, KeyError, OSError, BadZipFile) as e:
        raise ValueError(f'a file of the run {run_dir} cannot be read: {e}') from e
    needed = (
        'top1', 'per_class', 'split_rule', 'splits', 'train_images_per_class', 'num_images', 'num_classes')
    missing = [k for k in needed if not isinstance(run['metrics'], dict) or k not in run['metrics']]
    if missing:
        raise ValueError(
            f'{run_dir / "metrics.json"} lacks {missing}; it must hold a result of timm_lt.evaluate.report')
    return run


def read_summary(path: str | Path) -> list[dict[str, Any]]:
    """Rows of ``summary.csv``: numbers, lists for cells of several (``250/30``, ``-`` for none), None for all else."""
    with open(path, newline='', encoding='utf-8') as f:
        return [{key: _cell(value) for key, value in row.items() if key} for row in csv.DictReader(f)]


def _mistakes(path: Path) -> list[dict[str, Any]]:
    with ZipFile(path) as archive:
        found = json.loads(archive.read('mistakes.json'))
        return [{**mistake, 'picture': archive.read(mistake['file'])} for mistake in found]


def _predicted(run: Mapping[str, Any]) -> np.ndarray:
    logits, targets = check_predictions(torch.as_tensor(run['logits']).float(), run['targets'])
    return predict(logits, targets)['predicted'].numpy()


def _cell(text: str | None) -> Any:
    numbers = [_number(field) for field in (text or '').split('/')]
    return numbers[0] if len(numbers) == 1 else numbers if any(p is not None for p in numbers) else None


def group_runs(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Runs of one recipe with different seeds, measured alike, together; in order of appearance.

    Returns:
        Of each recipe ``name`` (the options in which the recipes differ, where they are few), ``runs``, ``merged`` (of
        :func:`merge_seeds`).
    """
    groups: list[tuple[dict | None, dict[str, Any], list[Mapping[str, Any]]]] = []
    for run in runs:
        recipe = {k: v for k, v in run['args'].items() if k not in NOT_OF_RECIPE} if run['args'] else None
        measured, seed = measured_by(run['metrics']), run['metrics'].get('seed')
        for known, known_measured, members in groups:
            if recipe is not None and seed is not None and (recipe, measured) == (known, known_measured) and all(
                    seed != r['metrics'].get('seed') for r in members):
                members.append(run)
                break
        else:
            groups.append((recipe, measured, [run]))
    names = _recipe_names([recipe for recipe, _, _ in groups])
    found = []
    for k, (_, _, members) in enumerate(groups):
        first = members[0]['name'] if len(members) == 1 else f"{members[0]['name']} and {len(members) - 1} more"
        merged = merge_seeds([r['metrics'] for r in members])
        found.append({'name': names[k] if names else first, 'runs': members, 'merged': merged})
    return found


def measured_by(metrics: Mapping[str, Any]) -> dict[str, Any]:
    """How the metrics were measured; metrics are repeats of one another only where this is the same."""
    protocol = metrics.get('protocol')
    protocol = protocol if isinstance(protocol, Mapping) else {}
    return {
        'split_rule': metrics['split_rule'], 'train_images_per_class': metrics['train_images_per_class'],
        'num_images': metrics['num_images'], 'test_part': protocol.get('test_part'),
        'dataset': protocol.get('dataset'), 'posthoc': posthoc_method(metrics),
        'transductive': bool(metrics.get('transductive')),
    }


def merge_corrected(runs: Sequence[Mapping[str, Any]]) -> tuple[str, dict[str, Any]] | None:
    """Label and :func:`merge_seeds` of the metrics with the correction; None unless all runs have the same one."""
    corrected = [r['metrics'].get('corrected') for r in runs]
    if not all(corrected) or len({(posthoc_method(c), c['transductive']) for c in corrected}) > 1:
        return None
    reports = [
        {**c, 'seed': r['metrics'].get('seed'), 'worst_class': min(a for a in c['per_class'] if a is not None)}
        for c, r in zip(corrected, runs)]
    return ' or '.join(dict.fromkeys(c['label'] for c in corrected)), merge_seeds(reports)


def _recipe_names(recipes: Sequence[Mapping[str, Any] | None]) -> list[str] | None:
    """Names made of the options that differ; None where they do not tell the recipes apart in a few words."""
    known = [r for r in recipes if r is not None]
    if len(known) < max(2, len(recipes)):
        return None
    keys = dict.fromkeys(k for r in known for k in r)
    differ = [k for k in keys if any(r.get(k) != known[0].get(k) for r in known)]
    names = [', '.join(f'{k.replace("_", " ")} {r.get(k)}' for k in differ) for r in known]
    if not differ or len(differ) > 3 or len(set(names)) < len(names) or max(map(len, names)) > 48:
        return None
    return names


def significance_of(first: Mapping[str, Any], second: Mapping[str, Any], bootstrap: int, seed: int) -> dict[str, Any]:
    """p-values of the metrics of two groups of runs, and ``how`` they were found; empty where nothing can be said."""
    one, two = first['runs'], second['runs']
    if len(one) > 1 and len(two) > 1:
        from scipy.stats import ttest_ind
        found: dict[str, Any] = {'how': "Welch's t-test over seeds"}
        for key, _ in METRICS:
            values = [[r['metrics'].get(key) for r in runs] for runs in (one, two)]
            if None not in values[0] + values[1] and max(map(np.ptp, values)) > 0:  # no deviation, nothing to test with
                with warnings.catch_warnings():
                    warnings.simplefilter('ignore', RuntimeWarning)  # scipy's, where one side hardly varies
                    found[key] = float(ttest_ind(*values, equal_var=False).pvalue)
        return found
    a, b = one[0], two[0]
    if a['predicted'] is None or b['predicted'] is None or not np.array_equal(a['targets'], b['targets']):
        return {}
    result = compare(
        a['predicted'], b['predicted'], a['targets'], a['metrics']['train_images_per_class'],
        split_rule=a['metrics']['split_rule'], bootstrap=bootstrap, seed=seed)
    found = {'how': 'paired bootstrap over test images' + (
        ', first seed of each' if len(one) + len(two) > 2 else ''), 'mcnemar': result['mcnemar']}
    for key, _ in METRICS:
        found[key] = result[key] and result[key]['p_value']
    return found


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None

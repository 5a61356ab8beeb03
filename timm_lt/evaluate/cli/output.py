"""The folder of an evaluation and the closing lines on the terminal."""

import json
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from torch import Tensor

from ..._files import json_ready, whole_file, write_text
from ..._text import printable
from ...class_distribution import SPLIT_NAMES, ClassDistribution
from ..reports import write_mistakes, write_report
from .network import EvaluationError

METRICS = (
    'top1', 'top5', 'balanced_accuracy', *SPLIT_NAMES, 'worst_class', 'harmonic_mean', 'geometric_mean', 'macro_f1',
    'ece', *(f'ece_{n}' for n in SPLIT_NAMES))
OF_TRAINING = ('summary.csv', 'last', 'hub')  # a folder with one of these is that of a training run
MISSING_REPORT = 3  # exit status


@dataclass
class Output:
    """Results of an evaluation.

    Attributes:
        metrics: Contents of ``metrics.json``.
        targets: True classes, (N,).
        distribution: Training class sizes and names.
        logits: Scores that the metrics are of, (N, C), or None.
        predictions: Predicted classes, (N,), where there are no scores.
        dataset: The tested images, or None.
        recipe: Options of the training run.
    """
    metrics: dict[str, Any]
    targets: Tensor
    distribution: ClassDistribution
    logits: Tensor | None = None
    predictions: Tensor | None = None
    dataset: Any = None
    recipe: dict[str, Any] = field(default_factory=dict)


def choose_folder(output: str | None, source: str) -> Path:
    """The folder to write: the one given, else ``evaluation/NAME`` with a number if that exists.

    Raises:
        EvaluationError: If the folder given is that of a training run, whose files would be lost.
    """
    if output:
        folder = Path(output)
        if any((folder / name).exists() for name in OF_TRAINING):
            raise EvaluationError(
                f'--output {output} is the folder of a training run, whose metrics would be overwritten; name another '
                f'folder')
        return folder
    path = Path(source.partition(':')[2] or source)
    name = path.parent.name if path.name == 'hub' and path.parent.name else path.stem if path.is_file() else path.name
    first = Path('evaluation') / (re.sub(r'[^\w.-]+', '_', name) or 'checkpoint')
    folder, number = first, 1
    while folder.exists():
        number += 1
        folder = first.with_name(f'{first.name}-{number}')
    return folder


def write_output(folder: Path, output: Output) -> int:
    """Write metrics and predictions, then pictures and report, and print the closing lines.

    Returns:
        0, or 3 if the report could not be written; the metrics are on disk then.
    """
    metrics = output.metrics
    folder.mkdir(parents=True, exist_ok=True)
    arrays: dict[str, Any] = {'targets': output.targets.numpy()}
    if output.logits is not None:
        arrays['logits'] = output.logits.float().numpy()
    if output.predictions is not None:
        arrays['predictions'] = output.predictions.numpy()
    with whole_file(folder / 'predictions.npz') as temporary, open(temporary, 'wb') as f:
        np.savez_compressed(f, **arrays)
    output.distribution.to_json(folder / 'class_distribution.json')
    if output.recipe:
        write_text(folder / 'args.yaml', yaml.safe_dump(output.recipe, sort_keys=False))
    write_text(folder / 'metrics.json', json.dumps(json_ready(metrics), indent=1, allow_nan=False) + '\n')
    try:
        if output.dataset is not None:
            write_mistakes(folder, output.dataset)
        page = write_report(folder)
    except Exception as e:  # the metrics are worth more than their pictures
        sys.stdout.write(summary(metrics) + f'metrics: {printable(folder / "metrics.json")}\n')
        reason = f'{type(e).__name__}: {printable(e)}'
        sys.stderr.write(f'python -m timm_lt.evaluate: warning: report.html was not written: {reason}\n')
        return MISSING_REPORT
    sys.stdout.write(summary(metrics) + f'report: {printable(page)}\n')
    return 0


def summary(metrics: dict[str, Any]) -> str:
    """The metrics as lines for a terminal."""
    rows = []
    for name in METRICS:
        value, interval = metrics[name], (metrics['confidence'] or {}).get(name)
        shown = 'absent' if value is None else f'{value:6.2f}'
        rows.append(f'{name.replace("_", " "):18s}{shown}' + (
            f'   95%: {interval[0]:.2f} to {interval[1]:.2f}' if interval else ''))
    for found in metrics.get('open_set', []):
        rows.append(_open_set_line(found))
    if metrics['non_finite']:
        rows.append(f'{metrics["non_finite"]} images have scores that are NaN or infinite; they count as wrong')
    facts = [
        f'{metrics["num_images"]} images, {metrics["protocol"]["test_part"]}', f'split rule {metrics["split_rule"]}']
    if metrics.get('model'):
        facts.append(f'{metrics["model"]}, {metrics["num_parameters"]:,} parameters')
    if metrics['posthoc']:
        facts.append(f'post hoc: {metrics["posthoc"]}')
    return '\n'.join(map(printable, [*rows, 'percent; ' + '; '.join(facts)])) + '\n'


def _open_set_line(found: dict[str, Any]) -> str:
    def shown(key: str) -> str:
        return 'absent' if found[key] is None else f'{found[key]:.1f}'

    return (
        f'open set, {found["score"]}: F (OLTR) {found["f_measure_oltr"]:.3f}, F (rejected known not counted) '
        f'{found["f_measure_without_rejected"]:.3f}, AUROC {shown("auroc")}, FPR@95 {shown("fpr95")}, '
        f'OSCR {shown("oscr")}; top-1, many, medium, few after rejection: '
        f'{", ".join(map(shown, ("top1", *SPLIT_NAMES)))}')

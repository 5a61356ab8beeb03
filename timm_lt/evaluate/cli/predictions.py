"""Evaluation of a file of logits or predicted classes, without a network."""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ...class_distribution import ClassDistribution
from ..metrics import report
from .checkpoint import find_distribution
from .network import EvaluationError
from .output import Output, choose_folder, write_output

TARGETS = ('targets', 'target', 'labels', 'label')
LOGITS = ('logits', 'scores', 'outputs')
PREDICTIONS = ('predictions', 'prediction', 'predicted', 'preds', 'pred')
OF_A_NETWORK = ('model', 'num_classes', 'dataset', 'data_dir', 'split', 'open_set', 'landscape')
NEED_SCORES = ('top5', 'ece', 'ece_many', 'ece_medium', 'ece_few')
FORMATS = (
    "a .npz or .pt file holds 'logits' (N, C) or 'predictions' (N,), and 'targets' (N,); a .csv or .tsv file has a "
    "header, a column 'target' and either a column 'prediction' or one column of scores for each class")


def evaluate_predictions(args: argparse.Namespace) -> int:
    """Evaluate the file that ``--predictions`` names, and write the folder of the report.

    Returns:
        The exit status, see :func:`write_output`.

    Raises:
        EvaluationError: If the file cannot be read, or options need a network.
    """
    if given := [name for name in OF_A_NETWORK if getattr(args, name)]:
        option = f'--{given[0].replace("_", "-")}'
        raise EvaluationError(f'{option} is not allowed with --predictions, which has no network; pass --checkpoint')
    scores, targets = read_predictions(args.predictions)
    classes = scores.shape[1] if scores.ndim == 2 else None
    distribution = find_distribution(args.class_stats, classes, args.predictions)
    folder = choose_folder(args.output, args.predictions)
    metrics = report(
        scores if classes else _one_hot(scores, distribution), targets, distribution, split_rule=args.split_rule,
        bootstrap=args.bootstrap, seed=args.seed)
    if not classes:
        metrics |= dict.fromkeys(NEED_SCORES)
        if metrics['confidence']:
            metrics['confidence']['top5'] = None
    metrics |= {
        'model': None, 'num_parameters': None, 'seed': None,
        'protocol': {
            'predictions': args.predictions, 'test_part': f'file {Path(args.predictions).name}',
            'class_sizes_from': args.class_stats, 'bootstrap_seed': args.seed,
        },
    }
    return write_output(folder, Output(
        metrics, targets, distribution, logits=scores if classes else None, predictions=None if classes else scores))


def read_predictions(path: str | Path) -> tuple[Tensor, Tensor]:
    """Scores (N, C), float, or predicted classes (N,), int64, and true classes (N,) of a file.

    Args:
        path: ``.npz`` (as ``predictions.npz`` of a run), ``.pt`` (a dictionary of tensors), ``.csv`` or ``.tsv``.

    Raises:
        EvaluationError: If there is no such file, or its content is of another form.
    """
    path = Path(path)
    if not path.is_file():
        raise EvaluationError(f'there is no file of predictions {path}')
    readers = {'.npz': _read_npz, '.pt': _read_pt, '.pth': _read_pt, '.csv': _read_table, '.tsv': _read_table}
    if path.suffix.lower() not in readers:
        raise EvaluationError(f'the file of predictions {path} is none of {", ".join(readers)}: {FORMATS}')
    try:
        entries = readers[path.suffix.lower()](path)
    except Exception as e:  # numpy, zipfile, pickle and csv raise errors of many kinds
        raise EvaluationError(f'the file of predictions {path} cannot be read ({e}): {FORMATS}') from e
    scores = _first(entries, LOGITS)
    scores = _first(entries, PREDICTIONS) if scores is None else scores
    targets = _first(entries, TARGETS)
    if scores is None or targets is None:
        raise EvaluationError(f'the file of predictions {path} has {sorted(entries) or "nothing"}: {FORMATS}')
    scores, targets = torch.as_tensor(scores), torch.as_tensor(targets)
    if scores.ndim not in (1, 2) or targets.shape != scores.shape[:1]:
        raise EvaluationError(
            f'the file of predictions {path} has predictions of shape {tuple(scores.shape)} and targets of shape '
            f'{tuple(targets.shape)}: {FORMATS}')
    if targets.is_floating_point() and not torch.equal(targets, targets.round()):
        raise EvaluationError(f'the targets in {path} must be whole numbers')
    return (scores.double() if scores.ndim == 2 else scores.long()), targets.long()


def _one_hot(predictions: Tensor, distribution: ClassDistribution) -> Tensor:
    low, high = int(predictions.min()), int(predictions.max())
    if low < 0 or high >= distribution.num_classes:
        raise EvaluationError(
            f'predicted classes must be in [0, {distribution.num_classes - 1}], the classes of --class-stats, got '
            f'classes from {low} to {high}')
    return F.one_hot(predictions, distribution.num_classes).float()


def _first(entries: dict[str, Any], names: tuple[str, ...]) -> Any:
    return next((entries[name] for name in names if name in entries), None)


def _read_npz(path: Path) -> dict[str, Any]:
    with np.load(path, allow_pickle=False) as data:
        return {name: data[name] for name in data.files}


def _read_pt(path: Path) -> dict[str, Any]:
    return dict(torch.load(path, map_location='cpu', weights_only=True))


def _read_table(path: Path) -> dict[str, Any]:
    """Columns of numbers; those that are neither target nor prediction are the scores of the classes, in order."""
    with open(path, newline='', encoding='utf-8-sig') as f:
        header, *rows = csv.reader(f, delimiter='\t' if path.suffix.lower() == '.tsv' else ',')
    numbers = np.array([row for row in rows if row], dtype=np.float64)
    columns = {name.strip(): numbers[:, k] for k, name in enumerate(header)}
    targets, predictions = _first(columns, TARGETS), _first(columns, PREDICTIONS)
    scores = [column for name, column in columns.items() if name not in (*TARGETS, *PREDICTIONS)]
    found = {'targets': targets, 'predictions': predictions, 'logits': np.stack(scores, 1) if scores else None}
    if predictions is not None:
        found['logits'] = None
    return {name: column for name, column in found.items() if column is not None}

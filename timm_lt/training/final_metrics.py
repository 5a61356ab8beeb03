"""Content of ``metrics.json`` and of the closing lines of a run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
from accelerate import Accelerator

from .._text import counted
from .._version import __version__
from ..evaluate.metrics.views import VIEWS
from .data import DataParts
from .options import Options
from .results import MetricRules, StageResult


def final_metrics(
        rules: MetricRules, result: StageResult, data: DataParts, accelerator: Accelerator) -> dict[str, Any]:
    """The metrics of a stage for ``metrics.json``, and everything needed to read them.

    Args:
        rules: Rules of the metrics.
        result: Result of the stage.
        data: The parts.
        accelerator: Accelerate's object of the stage.
    """
    distribution = data.distribution
    return rules.report(result.logits, result.targets) | {
        'num_parameters': sum(p.numel() for p in result.model.parameters()),
        'imbalance_ratio': distribution.imbalance_ratio,
        'num_train_images': distribution.num_samples,
        'num_test_images': int(result.targets.numel()),
        'epochs': result.epochs,
        'wall_seconds': round(result.seconds, 3),
        'images_per_second': round(result.images_per_second, 2),
        'skipped_steps': result.skipped_steps,
        'protocol': {
            'test_part': data.test_part,
            'validation_part': data.validation_part,
            **({} if result.reported_epoch is None else {'reported_epoch': result.reported_epoch}),
            'epoch_chosen_by': result.chosen_by,
            'weights': result.weights,
            'split_rule': rules.split_rule,
            **({'test_time_augmentation': VIEWS[rules.tta]} if rules.tta > 1 else {}),
            'transductive': 'no',
            'processes': accelerator.num_processes,
            'precision': accelerator.mixed_precision,
            'device': _device_name(accelerator.device),
            'versions': f'timm_lt {__version__}, timm {timm.__version__}, torch {torch.__version__}',
        },
    }


def method_facts(options: Options) -> dict[str, Any]:
    """Names of model, data and methods, for ``metrics.json``."""
    return {
        'model': options.model.model, 'dataset': options.data.dataset or str(options.data.data_dir),
        'loss': options.loss.loss, 'sampler': options.data.sampler, 'opt': options.optimizer.opt,
        'seed': options.run.seed}


def metrics_of_both(
        rules: MetricRules, first: dict[str, Any], result: StageResult, info: dict[str, Any]) -> dict[str, Any]:
    """Content of ``metrics.json`` after two stages: the final metrics, and those of each under its name.

    ``protocol`` says what chose the final metrics: the epoch of the second stage where it has epochs, its tau.

    Args:
        rules: Rules of the metrics.
        first: Metrics of the first stage.
        result: Result of the second stage.
        info: Facts about the second stage.
    """
    chosen = ('reported_epoch', 'epoch_chosen_by')
    last = rules.report(result.logits, result.targets)
    seconds = first['wall_seconds'] + info['wall_seconds']
    images = sum(stage['wall_seconds'] * stage['images_per_second'] for stage in (first, info))
    protocol = dict(first['protocol'])
    stage1 = {k: v for k, v in first.items() if k != 'protocol'} | {k: protocol[k] for k in chosen if k in protocol}
    protocol |= {k: info[k] for k in (*chosen, 'tau', 'tau_chosen_by') if k in info}
    if 'reported_epoch' in info:
        protocol['reported_stage'] = 2
    whole = {k: v for k, v in first.items() if k != 'variants'}  # these are of the first stage
    return {
        **whole, **last, 'wall_seconds': round(seconds, 3),
        'images_per_second': round(images / max(seconds, 1e-9), 2), 'protocol': protocol, 'stage1': stage1,
        'stage2': {**last, **info}}


def summary_table(metrics: dict[str, Any], folder: Path) -> str:
    """The closing lines: top-1, balanced accuracy, splits, and where the outputs are."""
    columns = ('top1', 'balanced_accuracy', 'many', 'medium', 'few', 'ece')
    names = [name.removesuffix('_accuracy') for name in columns]
    cells = _cells(metrics, columns)
    widths = [max(len(n), len(c)) for n, c in zip(names, cells)]
    line = '  '.join
    protocol, stage1, stage2 = metrics['protocol'], metrics.get('stage1', {}), metrics.get('stage2')
    corrected = metrics.get('corrected')
    return '\n'.join([
        '',
        line(n.rjust(w) for n, w in zip(names, widths)),
        line(c.rjust(w) for c, w in zip(cells, widths)),
        *([line(c.rjust(w) for c, w in zip(_cells(corrected, columns), widths)) + f'  {corrected["label"]}']
          if corrected else []),
        *(line(c.rjust(w) for c, w in zip(_cells(row, columns), widths)) + f'  {row["label"]}'
          for row in metrics.get('variants', []) if not row['reported']),
        '',
        f'percent, {counted(metrics["num_test_images"], "test image")} ({protocol["test_part"]}); splits by '
        f'{protocol["split_rule"]}; {_choice(protocol)}',
        f'{metrics["model"]}, {metrics["num_parameters"]:,} parameters; seed {metrics["seed"]}; '
        f'{metrics["wall_seconds"]:.0f} s of training, {metrics["images_per_second"]:.0f} images/s',
        *([f'second stage {stage2["method"]}; first stage top1 {_cells(stage1, ["top1"])[0]}, {_choice(stage1)}']
          if stage2 else []),
        f'outputs: {folder}',
        '',
    ])


def _choice(facts: dict[str, Any]) -> str:
    """The epoch and the tau that metrics are of, and what chose them, in words."""
    text = 'no epoch was trained'
    if 'reported_epoch' in facts:
        stage = ' of the second stage' if facts.get('reported_stage') == 2 else ''
        text = f'epoch {facts["reported_epoch"] + 1}{stage}, chosen by {facts["epoch_chosen_by"]}'
    if 'tau' in facts:
        text += f'; tau {facts["tau"]:g}, chosen by {facts["tau_chosen_by"]}'
    return text


def _cells(metrics: dict[str, Any], names: Sequence[str]) -> list[str]:
    return ['absent' if metrics.get(n) is None else f'{metrics[n]:.2f}' for n in names]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type

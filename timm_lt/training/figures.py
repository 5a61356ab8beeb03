"""What ``metrics.json`` and the closing lines of a run say."""

from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from .._version import __version__
from ..evaluate import report
from .data import DataParts
from .trainer import Trainer


def final_metrics(
        args: Namespace,
        accelerator: Accelerator,
        trainer: Trainer,
        data: DataParts,
        model: nn.Module,
        logits: Tensor,
        targets: Tensor,
        rule: str,
        reported_epoch: int | None,
        chosen_by: str,
) -> dict[str, Any]:
    """What ``metrics.json`` holds: the report, and everything needed to read it."""
    progress = trainer.progress
    metrics = dict(report(
        logits, targets, data.distribution.counts, split_rule=rule, class_names=data.distribution.class_names,
        bootstrap=args.bootstrap, seed=args.seed))
    metrics |= {
        'model': args.model,
        'num_parameters': sum(p.numel() for p in model.parameters()),
        'dataset': args.dataset or str(args.data_dir),
        'imbalance_ratio': data.distribution.imbalance_ratio,
        'num_train_images': data.distribution.num_samples,
        'num_test_images': int(targets.numel()),
        'loss': args.loss,
        'sampler': args.sampler,
        'opt': args.opt,
        'epochs': trainer.epochs,
        'seed': args.seed,
        'wall_seconds': round(progress.train_seconds, 3),
        'images_per_second': round(progress.images / max(progress.train_seconds, 1e-9), 2),
        'skipped_steps': progress.skipped,
        'protocol': {
            'test_part': data.test_part,
            'validation_part': data.validation_part,
            **({} if reported_epoch is None else {'reported_epoch': reported_epoch}),
            'epoch_chosen_by': chosen_by,
            'weights': _weights(trainer.ema),
            'split_rule': rule,
            'transductive': 'no',
            'processes': accelerator.num_processes,
            'precision': accelerator.mixed_precision,
            'device': _device_name(accelerator.device),
            'versions': f'timm_lt {__version__}, timm {timm.__version__}, torch {torch.__version__}',
        },
    }
    return metrics


def metrics_of_both(
        args: Namespace, first: dict[str, Any], second: Any, data: DataParts, rule: str) -> dict[str, Any]:
    """What ``metrics.json`` holds after two stages: the final figures, and those of each under its name.

    ``protocol`` says what chose the final figures: the epoch of the second stage where it has epochs, its tau.
    """
    info, chosen = second.info, ('reported_epoch', 'epoch_chosen_by')
    figures = dict(report(
        second.logits, second.targets, data.distribution.counts, split_rule=rule,
        class_names=data.distribution.class_names, bootstrap=args.bootstrap, seed=args.seed))
    seconds = first['wall_seconds'] + info['wall_seconds']
    images = sum(stage['wall_seconds'] * stage['images_per_second'] for stage in (first, info))
    protocol = dict(first['protocol'])
    stage1 = {k: v for k, v in first.items() if k != 'protocol'} | {k: protocol[k] for k in chosen if k in protocol}
    protocol |= {k: info[k] for k in (*chosen, 'tau', 'tau_chosen_by') if k in info}
    if 'reported_epoch' in info:
        protocol['reported_stage'] = 2
    return {
        **first, **figures, 'wall_seconds': round(seconds, 3),
        'images_per_second': round(images / max(seconds, 1e-9), 2), 'protocol': protocol, 'stage1': stage1,
        'stage2': {**figures, **info}}


def summary_table(metrics: dict[str, Any], folder: Path) -> str:
    """The closing lines: top-1 and splits, and where the outputs are."""
    names = ('top1', 'many', 'medium', 'few', 'ece')
    cells = _cells(metrics, names)
    widths = [max(len(n), len(c)) for n, c in zip(names, cells)]
    line = '  '.join
    protocol, stage1, stage2 = metrics['protocol'], metrics.get('stage1'), metrics.get('stage2')
    corrected = metrics.get('corrected')
    return '\n'.join([
        '',
        line(n.rjust(w) for n, w in zip(names, widths)),
        line(c.rjust(w) for c, w in zip(cells, widths)),
        *([line(c.rjust(w) for c, w in zip(_cells(corrected, names), widths)) + f'  {corrected["label"]}']
          if corrected else []),
        '',
        f'percent, {metrics["num_test_images"]} images of {protocol["test_part"]}; splits by {protocol["split_rule"]}; '
        f'{_choice(protocol)}',
        f'{metrics["model"]}, {metrics["num_parameters"]:,} parameters; seed {metrics["seed"]}; '
        f'{metrics["wall_seconds"]:.0f} s of training, {metrics["images_per_second"]:.0f} images/s',
        *([f'second stage {stage2["method"]}; first stage top1 {_cells(stage1, ["top1"])[0]}, {_choice(stage1)}']
          if stage2 else []),
        f'outputs: {folder}',
        '',
    ])


def _weights(ema: Any) -> str:
    if ema is None:
        return 'raw'
    return 'moving average, its decay warmed up' if ema.use_warmup else 'moving average'


def _choice(facts: dict[str, Any]) -> str:
    """The epoch and the tau that figures are of, and what chose them, in words."""
    text = 'no epoch was trained'
    if 'reported_epoch' in facts:
        stage = ' of the second stage' if facts.get('reported_stage') == 2 else ''
        text = f'epoch {facts["reported_epoch"] + 1}{stage}, chosen by {facts["epoch_chosen_by"]}'
    if 'tau' in facts:
        text += f'; tau {facts["tau"]:g}, chosen by {facts["tau_chosen_by"]}'
    return text


def _cells(figures: dict[str, Any], names: Sequence[str]) -> list[str]:
    return ['absent' if figures.get(n) is None else f'{figures[n]:.2f}' for n in names]


def _device_name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == 'cuda' else device.type

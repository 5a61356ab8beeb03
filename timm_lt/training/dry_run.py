"""Dry run: data, options, and the time and memory of a step. Nothing is written to disk."""

import time
from statistics import median
from typing import Any

import psutil
import torch
from torch import Tensor

from .._text import counted
from .console import duration
from .options import OPTIONS, Options
from .stage import Stage
from .trainer import Trainer

MEASURED_STEPS = 5


def dry_run(options: Options, stage: Stage, trainer: Trainer) -> str:
    """Take a few steps of the first stage, and describe the run in lines.

    Args:
        options: Of the run.
        stage: The first stage.
        trainer: Of this stage; the weights change.
    """
    data = stage.data
    counts = data.distribution.counts
    lines = [f'training part: {len(data.train)} images of {len(counts)} classes, {int(counts.max())} in the largest '
             f'and {int(counts.min())} in the smallest']
    if data.validation is not None:
        lines.append(f'validation part: {len(data.validation)} images, {data.validation_part}')
    lines.append(f'test part: {len(data.test)} images, {data.test_part}')
    changed = {
        name: value for name, value in options.flat().items()
        if value != OPTIONS[name].default and name != 'dry_run'}
    given = [f'{OPTIONS[name].flag} {value}' for name, value in changed.items()]
    return '\n'.join([
        '', *lines, f'options that are not the defaults: {" ".join(given)}', *measured(trainer),
        'dry run: nothing was written; leave out --dry-run to train', ''])


def measured(trainer: Trainer) -> list[str]:
    """Shapes of a step, its time and the memory, over the first steps of an epoch."""
    steps = trainer.windows.updates_per_epoch
    trainer.learner.start_epoch(0, trainer.epochs, steps)
    trainer.windows.set_epoch(0)
    seconds: list[float] = []
    shapes = ''
    started = time.perf_counter()
    for window in trainer.windows:
        _, outputs = trainer.learner.step(window, 1 / max(trainer.epochs, 1))
        _finish(trainer.accelerator.device)
        seconds.append(time.perf_counter() - started)
        shapes = shapes or f'{len(window.inputs)} x {_shape(window.inputs[0])} to logits {_shape(outputs[0])}'
        if len(seconds) == MEASURED_STEPS:
            break
        started = time.perf_counter()
    step = median(seconds[1:] or seconds)  # the first one also allocates
    epoch = step * steps
    return [
        f'a step: {shapes}; {1000 * step:.0f} ms, {_memory(trainer.accelerator.device)}',
        f'an epoch: {counted(steps, "step")}, about {duration(epoch)}; {counted(trainer.epochs, "epoch")}: about '
        f'{duration(epoch * trainer.epochs)}, evaluation and checkpoints apart']


def _shape(tensor: Any) -> str:
    tensor = tensor if isinstance(tensor, Tensor) else tensor[0]
    return str(tuple(tensor.shape))


def _finish(device: torch.device) -> None:
    if device.type == 'cuda':
        torch.cuda.synchronize(device)


def _memory(device: torch.device) -> str:
    if device.type == 'cuda':
        return f'{torch.cuda.max_memory_allocated(device) / 2 ** 30:.2f} GiB of GPU memory at most'
    return f'{psutil.Process().memory_info().rss / 2 ** 30:.2f} GiB of memory in this process'

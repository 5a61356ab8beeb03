"""Metrics of a running stage, as lines for a terminal or a log."""

import time
from typing import Any

METRICS = {'top1': 'top1', 'balanced_accuracy': 'balanced', 'many': 'many', 'medium': 'medium', 'few': 'few'}
PARTS = {'train': 'training', 'val': 'validation'}


class EpochLines:
    """A line for each epoch: loss, metrics of the training and validation images, learning rate, times.

    Args:
        epochs: Epochs of the stage.
    """

    def __init__(self, epochs: int) -> None:
        self.epochs = epochs
        self.finished = 0
        self.started = self.before = time.monotonic()

    def of(self, row: dict[str, Any]) -> str:
        """The line of the epoch that has just ended.

        Args:
            row: Of ``summary.csv``; metrics in percent, the epoch counted from 0.
        """
        now = time.monotonic()
        self.finished += 1
        seconds, self.before = now - self.before, now
        left = self.epochs - row['epoch'] - 1
        cells = [f'epoch {row["epoch"] + 1}/{self.epochs}', f'loss {row["train_loss"]:.4g}']
        cells += [
            f'{name}: {_metrics(row, part)}' for part, name in PARTS.items() if f'{part}_top1' in row]
        cells += [f'lr {row["lr"]:.3g}', duration(seconds)]
        if left > 0:
            cells.append(f'{duration((now - self.started) / self.finished * left)} left')
        return ', '.join(cells)


def short_metrics(row: dict[str, Any]) -> dict[str, str]:
    """Training metrics for the progress bar."""
    names = {'train_loss': 'loss'} | {f'train_{metric}': short for metric, short in METRICS.items()}
    return {short: '-' if row.get(name) is None else f'{row[name]:.3g}' for name, short in names.items()}


def duration(seconds: float) -> str:
    """A time in its two largest units, e.g. '1 h 05 min'."""
    if seconds < 60:
        return f'{seconds:.1f} s'
    minutes, rest = divmod(round(seconds), 60)
    return f'{minutes} min {rest:02d} s' if minutes < 60 else f'{minutes // 60} h {minutes % 60:02d} min'


def _metrics(row: dict[str, Any], part: str) -> str:
    values = {short: row.get(f'{part}_{metric}') for metric, short in METRICS.items()}
    return ' '.join(f'{short} {value:.1f}' for short, value in values.items() if value is not None)

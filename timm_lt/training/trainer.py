"""The training loop of a stage: one process or several, resumable at any point."""

import logging
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from torch import Tensor
from tqdm import tqdm

from .._text import counted
from .checkpoint import save_checkpoint
from .console import EpochLines, short_metrics
from .errors import TrainingError
from .learner import Learner
from .meters import TrainMeter
from .options import RunOptions
from .outputs import RunFolder
from .windows import Window, Windows

_logger = logging.getLogger(__name__)


class Callback:
    """Actions of a method beside the steps. Its state is saved and resumed with the run.

    ``on_train_start`` is called once, also after a resume; ``on_epoch_end`` returns metrics for ``summary.csv``.
    """

    def on_train_start(self, trainer: 'Trainer') -> None:
        pass

    def on_epoch_start(self, trainer: 'Trainer', epoch: int) -> None:
        pass

    def on_epoch_end(self, trainer: 'Trainer', epoch: int) -> dict[str, Any]:
        return {}

    def on_checkpoint(self, name: str) -> None:
        """A checkpoint of the present state is in place under ``name``."""

    def on_checkpoint_removed(self, name: str) -> None:
        """The checkpoint ``name`` is no longer in place."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Progress:
    """Progress of a stage: epoch, step inside it, updates made, rows of the summary, the running meter."""

    def __init__(self, meter: TrainMeter) -> None:
        self.epoch = 0
        self.step = 0
        self.updates = 0
        self.skipped = 0
        self.rows: list[dict[str, Any]] = []
        self.best: dict[str, Any] = {}
        self.train_seconds = 0.0
        self.images = 0
        self.meter = meter

    def state_dict(self) -> dict[str, Any]:
        return {k: v for k, v in vars(self).items() if k != 'meter'} | {'meter': self.meter.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        state = dict(state)
        self.meter.load_state_dict(state.pop('meter'))
        vars(self).update(state)


class Trainer:
    """Runs the epochs of a stage, resumable at any point.

    Args:
        learner: Network or head, with its loss and optimizer.
        windows: The training images.
        epochs: Number of epochs.
        splits: Masks (C,) of the many-, medium- and few-shot classes.
        folder: Folder of the stage.
        options: Seed, checkpoints and logs.
        validate: Called with the trainer after an epoch, returns metrics; None: no validation part.
        eval_metric: Metric of ``validate`` that chooses the best epoch.
        patience: Epochs without a better such metric after which training ends; 0: it never ends early.
        callbacks: See :class:`Callback`.
    """

    def __init__(
            self,
            learner: Learner,
            windows: Windows,
            epochs: int,
            splits: dict[str, Tensor],
            folder: RunFolder,
            options: RunOptions,
            *,
            validate: Callable[['Trainer'], dict[str, Any]] | None = None,
            eval_metric: str = 'top1',
            patience: int = 0,
            callbacks: tuple[Callback, ...] = (),
    ) -> None:
        self.learner = learner
        self.windows = windows
        self.epochs = epochs
        self.folder = folder
        self.options = options
        self.validate = validate
        self.eval_metric = eval_metric
        self.patience = patience
        self.callbacks = callbacks
        self.accelerator = learner.accelerator
        self.progress = Progress(TrainMeter(splits, self.accelerator.device))
        # their order is that of the files of a checkpoint
        self.accelerator.register_for_checkpointing(
            self.progress, learner.scheduler, *callbacks, *learner.checkpointed())

    @property
    def model(self) -> nn.Module:
        return self.learner.model

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        return self.learner.optimizer

    @property
    def finished(self) -> bool:
        """All epochs are trained, or ``patience`` of them without a better validation metric."""
        progress = self.progress
        patient = not self.patience or not progress.best or progress.epoch - progress.best['epoch'] <= self.patience
        return progress.epoch >= self.epochs or not patient

    def save(self, name: str = 'last') -> None:
        """Write the checkpoint ``name`` of the present state."""
        note = {'epoch': self.progress.epoch, 'step': self.progress.step}
        save_checkpoint(self.accelerator, self.folder.path / name, note)
        for callback in self.callbacks:
            callback.on_checkpoint(name)

    def fit(self) -> None:
        """Train from the epoch that :attr:`progress` names to the last.

        Raises:
            TrainingError: If the loss is not finite.
        """
        for callback in self.callbacks:
            callback.on_train_start(self)
        self.folder.write_summary(self.progress.rows)
        if self.progress.updates == 0:
            self.learner.scheduler.step_update(0)
        lines = EpochLines(self.epochs)
        while not self.finished:
            row = self._run_epoch(self.progress.epoch)
            self._finish_epoch(row)
            if self.accelerator.is_main_process:
                _logger.info('%s', lines.of(row))
                if self.finished and self.progress.epoch < self.epochs:
                    _logger.info(
                        'stopped after epoch %d, because %s brought no better %s of the validation part than epoch '
                        '%d', self.progress.epoch, counted(self.patience, 'epoch'), self.eval_metric,
                        self.progress.best['epoch'] + 1)

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        progress, metric = self.progress, f'val_{self.eval_metric}'
        epoch = progress.epoch
        self.learner.finish_epoch()
        if self.validate is not None:
            row |= {f'val_{k}': v for k, v in self.validate(self).items()}
        for callback in self.callbacks:
            row |= callback.on_epoch_end(self, epoch)
        self.learner.scheduler.step(epoch + 1, row.get(metric))
        progress.rows.append(row)
        progress.epoch, progress.step = epoch + 1, 0
        progress.meter.reset()
        if row.get(metric) is not None and row[metric] > progress.best.get(metric, -1.0):
            progress.best = {'epoch': epoch, metric: row[metric]}
            self.save('best')
        if (epoch + 1) % self.options.checkpoint_every == 0 or self.finished:
            self.save()
        self._keep_checkpoints(epoch)
        self.folder.write_summary(progress.rows)
        if self.accelerator.trackers:
            self.accelerator.log({k: v for k, v in row.items() if isinstance(v, (int, float))}, step=epoch)

    def _keep_checkpoints(self, epoch: int) -> None:
        """Keep the checkpoints of the best epochs, as many as ``--checkpoint-hist`` says; the newest of equals."""
        if not self.options.checkpoint_hist:
            return
        metric = f'val_{self.eval_metric}'
        ranked = sorted(self.progress.rows, key=lambda row: (row.get(metric) or 0.0, row['epoch']), reverse=True)
        kept = [row['epoch'] for row in ranked[:self.options.checkpoint_hist]]
        if epoch in kept:
            self.save(self.folder.epoch_checkpoint(epoch))
        for name in self.folder.drop_epoch_checkpoints(kept):
            for callback in self.callbacks:
                callback.on_checkpoint_removed(name)

    def _run_epoch(self, epoch: int) -> dict[str, Any]:
        self.learner.start_epoch(epoch, self.epochs, self.windows.updates_per_epoch)
        self.windows.set_epoch(epoch, self.progress.step)
        for callback in self.callbacks:
            callback.on_epoch_start(self, epoch)
        started = time.perf_counter()
        bar = self._progress_bar(epoch)
        for window in self.windows:
            self._step(window, epoch)
            bar.update(len(window.inputs))
            if not bar.disable and bar.n % self.options.log_interval < len(window.inputs):
                bar.set_postfix(short_metrics(self.progress.meter.compute()))
            if self._checkpoint_is_due(len(window.inputs)):
                self.progress.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save()
        row = self._training_metrics(epoch)
        self.progress.train_seconds += time.perf_counter() - started
        bar.set_postfix(short_metrics(row))
        bar.close()
        if not np.isfinite(row['train_loss']):
            raise TrainingError(
                f'the training loss of epoch {epoch + 1} is {row["train_loss"]}: the run has diverged. The last '
                f'checkpoint is from before this epoch; lower --lr, clip gradients (--clip-grad 1), or use bf16 '
                f'instead of fp16')
        return row

    def _step(self, window: Window, epoch: int) -> None:
        progress = self.progress
        result, outputs = self.learner.step(window, (epoch + 1) / self.epochs)
        progress.step += len(window.inputs)
        progress.images += self.accelerator.num_processes * sum(len(label) for label in window.labels)
        progress.meter.update(result.loss, outputs, window.labels)
        if result.skipped:
            progress.skipped += 1
        else:
            progress.updates += 1
            self.learner.finish_step(progress.updates)

    def _checkpoint_is_due(self, micro_batches: int) -> bool:
        every, step = self.options.checkpoint_steps, self.progress.step
        return every > 0 and step < len(self.windows) and step // every > (step - micro_batches) // every

    def _training_metrics(self, epoch: int) -> dict[str, Any]:
        reduce = self.accelerator.reduce if self.accelerator.num_processes > 1 else None
        return {'epoch': epoch, **self.progress.meter.compute(reduce), 'lr': self.optimizer.param_groups[0]['lr'],
                'skipped_steps': self.progress.skipped}

    def _progress_bar(self, epoch: int) -> tqdm:
        hidden = self.options.quiet or not self.accelerator.is_main_process or not sys.stderr.isatty()
        return tqdm(
            total=len(self.windows), initial=self.progress.step, disable=hidden, leave=False, dynamic_ncols=True,
            desc=f'epoch {epoch + 1}/{self.epochs}')


"""The training loop: any timm model, loss and optimizer, one process or several, resumable at any point."""

import logging
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
import torch.nn as nn
from accelerate import Accelerator
from timm.data import Mixup
from torch import Tensor
from tqdm import tqdm

from .._unwrap import plain_model, unwrap_model
from ..optim import BatchClosure, find_sharpness_aware, optimizer_step
from .checkpoint import save_checkpoint
from .meters import TrainMeter
from .outputs import RunFolder

_logger = logging.getLogger(__name__)


class TrainingError(RuntimeError):
    """Training cannot go on; the message says why and what to do."""


class Callback:
    """What a method does beside the steps. Its state is saved and resumed with the run.

    ``on_train_start`` is called once, also after a resume; ``on_epoch_end`` returns figures for ``summary.csv``.
    """

    def on_train_start(self, trainer: 'Trainer') -> None:
        pass

    def on_epoch_start(self, trainer: 'Trainer', epoch: int) -> None:
        pass

    def on_epoch_end(self, trainer: 'Trainer', epoch: int) -> dict[str, Any]:
        return {}

    def on_checkpoint(self, name: str) -> None:
        """A checkpoint of the present state is in place under ``name``."""

    def state_dict(self) -> dict[str, Any]:
        return {}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        pass


class Progress:
    """Where the run stands: epoch, step inside it, updates made, rows of the summary, the running meter."""

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
    """Runs epochs; everything it needs is built by :mod:`timm_lt.training.build`.

    Args:
        accelerator: Accelerate's object; ``gradient_accumulation_steps`` of it stays 1.
        model: The prepared model.
        criterion: Loss with a value per sample, see :func:`timm_lt.losses.sample_losses`.
        optimizer: The prepared optimizer, of timm or of this package.
        scheduler: A timm scheduler.
        train_loader: Iterates (input, labels) on the device; ``set_epoch(epoch, start_step)``, ``len()`` in steps.
        splits: Masks (C,) of the many-, medium- and few-shot classes.
        epochs: Number of epochs.
        folder: The run folder.
        validate: Called with the trainer after an epoch, returns figures with ``top1``; None: no validation part.
        mix: Makes mixed inputs and soft targets of (input, label), e.g. timm's ``Mixup``; None: nothing.
        ema: timm's ``ModelEmaV3`` or None.
        callbacks: See :class:`Callback`.
    """

    def __init__(
            self,
            accelerator: Accelerator,
            model: nn.Module,
            criterion: nn.Module,
            optimizer: torch.optim.Optimizer,
            scheduler: Any,
            train_loader: Any,
            *,
            splits: dict[str, Tensor],
            epochs: int,
            folder: RunFolder,
            seed: int = 0,
            grad_accum_steps: int = 1,
            clip_grad: float | None = None,
            clip_mode: str = 'norm',
            validate: Callable[['Trainer'], dict[str, Any]] | None = None,
            mix: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]] | None = None,
            mixup_off_epoch: int = 0,
            ema: Any = None,
            callbacks: tuple[Callback, ...] = (),
            checkpoint_every: int = 1,
            checkpoint_steps: int = 0,
            log_interval: int = 50,
            quiet: bool = False,
    ) -> None:
        self.accelerator = accelerator
        self.model = model
        self.criterion = criterion
        self.optimizer = optimizer
        self.scheduler = scheduler
        self.train_loader = train_loader
        self.epochs = epochs
        self.folder = folder
        self.seed = seed
        self.grad_accum_steps = grad_accum_steps
        self.clip_grad = clip_grad
        self.clip_mode = clip_mode
        self.validate = validate
        self.mix = mix
        self.mixup_off_epoch = mixup_off_epoch
        self.ema = ema
        self.callbacks = callbacks
        self.checkpoint_every = checkpoint_every
        self.checkpoint_steps = checkpoint_steps
        self.log_interval = log_interval
        self.quiet = quiet
        self._bare_model = unwrap_model(model)[0]
        self.progress = Progress(TrainMeter(splits, accelerator.device))
        self._checkpointed = [self.progress, scheduler, *callbacks]
        if hasattr(scheduler, 'lr_scheduler'):  # plateau: the state of timm's lacks what torch's inside it counts
            self._checkpointed.append(scheduler.lr_scheduler)
        if any(True for _ in criterion.buffers()) or any(True for _ in criterion.parameters()):
            self._checkpointed.append(criterion)
        if ema is not None:
            self._checkpointed.append(ema)
        accelerator.register_for_checkpointing(*self._checkpointed)

    @property
    def eval_model(self) -> nn.Module:
        """The model whose figures are reported: the moving average if there is one."""
        return self.ema.module if self.ema is not None else self.model

    @property
    def plain_model(self) -> nn.Module:
        """The evaluated model without wrappers of processes, compilation or training heads."""
        return plain_model(self.eval_model)

    def save(self, name: str = 'last') -> None:
        note = {'epoch': self.progress.epoch, 'step': self.progress.step}
        save_checkpoint(self.accelerator, self.folder.path / name, note)
        for callback in self.callbacks:
            callback.on_checkpoint(name)

    def fit(self) -> None:
        """Train from where :attr:`progress` stands to the last epoch."""
        for callback in self.callbacks:
            callback.on_train_start(self)
        self.folder.write_summary(self.progress.rows)
        if self.progress.updates == 0:
            self.scheduler.step_update(0)
        while self.progress.epoch < self.epochs:
            row = self._run_epoch(self.progress.epoch)
            self._finish_epoch(row)

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        progress = self.progress
        epoch = progress.epoch
        if self.validate is not None:
            row |= {f'val_{k}': v for k, v in self.validate(self).items()}
        for callback in self.callbacks:
            row |= callback.on_epoch_end(self, epoch)
        self.scheduler.step(epoch + 1, row.get('val_top1'))
        progress.rows.append(row)
        progress.epoch, progress.step = epoch + 1, 0
        progress.meter.reset()
        improved = row.get('val_top1') is not None and row['val_top1'] > progress.best.get('val_top1', -1.0)
        if improved:
            progress.best = {'epoch': epoch, 'val_top1': row['val_top1']}
        if improved:
            self.save('best')
        if (epoch + 1) % self.checkpoint_every == 0 or epoch + 1 == self.epochs:
            self.save()
        self.folder.write_summary(progress.rows)
        if self.accelerator.trackers:
            self.accelerator.log({k: v for k, v in row.items() if isinstance(v, (int, float))}, step=epoch)

    def _run_epoch(self, epoch: int) -> dict[str, Any]:
        progress, accelerator = self.progress, self.accelerator
        self.model.train()
        self._tell_epoch(epoch)
        for callback in self.callbacks:
            callback.on_epoch_start(self, epoch)
        started = time.perf_counter()
        bar = self._progress_bar(epoch)
        for inputs, targets, labels in self._windows(epoch):
            result, outputs = self.step(inputs, targets, labels)
            progress.step += len(inputs)
            progress.images += accelerator.num_processes * sum(len(label) for label in labels)
            progress.meter.update(result.loss, outputs, labels)
            if result.skipped:
                progress.skipped += 1
            else:
                progress.updates += 1
                self.scheduler.step_update(progress.updates)
                if self.ema is not None:
                    self.ema.update(self._bare_model, progress.updates)
            bar.update(len(inputs))
            if not bar.disable and bar.n % self.log_interval < len(inputs):
                bar.set_postfix(_short(progress.meter.compute()))
            if self.checkpoint_steps and progress.step < len(self.train_loader) and (
                    progress.step // self.checkpoint_steps > (progress.step - len(inputs)) // self.checkpoint_steps):
                progress.train_seconds += time.perf_counter() - started
                started = time.perf_counter()
                self.save()
        row: dict[str, Any] = {'epoch': epoch}
        row |= progress.meter.compute(accelerator.reduce if accelerator.num_processes > 1 else None)
        progress.train_seconds += time.perf_counter() - started
        row['lr'] = self.optimizer.param_groups[0]['lr']
        row['skipped_steps'] = progress.skipped
        bar.set_postfix(_short(row))
        bar.close()
        if not np.isfinite(row['train_loss']):
            raise TrainingError(
                f'the training loss of epoch {epoch} is {row["train_loss"]}: the run has diverged. The last checkpoint '
                f'is from before this epoch; lower --lr, clip gradients (--clip-grad 1), or use bf16 instead of fp16')
        return row

    def step(self, inputs: list[Tensor], targets: list[Tensor], labels: list[Tensor]):
        """One optimizer step on a window of micro-batches; returns its result and the detached logits."""
        closure = BatchClosure(self.model, self.criterion, inputs, targets, self.accelerator, labels=labels)
        result = optimizer_step(
            self.optimizer, closure, self.accelerator, clip_grad=self.clip_grad, clip_mode=self.clip_mode)
        return result, closure.output

    def _tell_epoch(self, epoch: int) -> None:
        self.train_loader.set_epoch(epoch, self.progress.step)
        for part in (find_sharpness_aware(self.optimizer), self.criterion):
            if hasattr(part, 'set_epoch'):
                part.set_epoch(epoch, self.epochs)
        if self.mixup_off_epoch and hasattr(self.mix, 'mixup_enabled'):
            self.mix.mixup_enabled = epoch < self.mixup_off_epoch

    def _windows(self, epoch: int) -> Iterator[tuple[list[Tensor], list[Tensor], list[Tensor]]]:
        """Micro-batches grouped into accumulation windows; the last window of an epoch may be shorter."""
        window: tuple[list[Tensor], list[Tensor], list[Tensor]] = ([], [], [])
        step = self.progress.step
        for input, label in self.train_loader:
            target = label
            if self.mix is not None:
                if isinstance(self.mix, Mixup) and len(label) % 2:  # it pairs images; only a short epoch is odd
                    input, label = input[:-1], label[:-1]
                    target = label
                with numpy_seed(self.seed, epoch, step, self.accelerator.process_index):
                    input, target = self.mix(input, label)
            for part, value in zip(window, (input, target, label)):
                part.append(value)
            step += 1
            if len(window[0]) == self.grad_accum_steps:
                yield window
                window = ([], [], [])
        if window[0]:
            yield window

    def _progress_bar(self, epoch: int) -> tqdm:
        hidden = self.quiet or not self.accelerator.is_main_process or not sys.stderr.isatty()
        return tqdm(
            total=len(self.train_loader), initial=self.progress.step, disable=hidden, leave=False, dynamic_ncols=True,
            desc=f'epoch {epoch + 1}/{self.epochs}')


@contextmanager
def numpy_seed(*key: int) -> Iterator[None]:
    """numpy's global generator (timm's Mixup uses it) seeded by ``key`` inside the block, restored after it."""
    state = np.random.get_state()
    np.random.seed(np.random.SeedSequence(key).generate_state(1)[0])
    try:
        yield
    finally:
        np.random.set_state(state)


def _short(row: dict[str, Any]) -> dict[str, str]:
    names = {'train_loss': 'loss', 'train_top1': 'top1', 'train_many': 'many', 'train_medium': 'medium',
             'train_few': 'few'}
    return {short: '-' if row.get(k) is None else f'{row[k]:.3g}' for k, short in names.items()}

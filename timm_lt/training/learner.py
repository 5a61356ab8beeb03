"""The learner of a stage: a network with its loss and optimizer, and the computation of one step."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from .._unwrap import plain_model, unwrap_model
from ..optim import BatchClosure, StepResult, find_sharpness_aware, optimizer_step, set_epoch
from .errors import TrainingError, one_line
from .windows import Window


@dataclass
class Learner:
    """A network, its loss, its optimizer and their schedule. A step minimises the loss of the network's output.

    Attributes:
        accelerator: Accelerate's object; ``gradient_accumulation_steps`` of it stays 1.
        model: The prepared module that a step calls.
        criterion: Loss with a value per sample, see :func:`timm_lt.losses.sample_losses`.
        optimizer: The prepared optimizer, of timm or of this package.
        scheduler: A timm scheduler.
        clip_grad: Bound of the gradients, > 0; None: none.
        clip_mode: 'norm', 'value' or 'agc', as in timm.
        ema: timm's ``ModelEmaV3`` of the weights, or None.
    """
    accelerator: Accelerator
    model: nn.Module
    criterion: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    clip_grad: float | None = None
    clip_mode: str = 'norm'
    ema: Any = None

    def __post_init__(self) -> None:
        self._bare_model = unwrap_model(self.model)[0]

    @property
    def eval_model(self) -> nn.Module:
        """The model whose metrics are reported: the moving average if there is one."""
        return self.ema.module if self.ema is not None else self.model

    @property
    def plain_model(self) -> nn.Module:
        """The evaluated model without wrappers of processes, compilation or training heads."""
        return plain_model(self.eval_model)

    def checkpointed(self) -> list[Any]:
        """Objects beside model, optimizer and scheduler whose state a checkpoint holds."""
        objects: list[Any] = []
        if hasattr(self.scheduler, 'lr_scheduler'):  # plateau: the state of timm's lacks what torch's inside it counts
            objects.append(self.scheduler.lr_scheduler)
        if any(True for _ in self.criterion.buffers()) or any(True for _ in self.criterion.parameters()):
            objects.append(self.criterion)
        if self.ema is not None:
            objects.append(self.ema)
        return objects

    def start_epoch(self, epoch: int, epochs: int, updates_per_epoch: int) -> None:
        """Set the training mode, and tell optimizer and loss the epoch."""
        self.model.train()
        set_epoch(self.optimizer, epoch, epochs, updates_per_epoch)
        set_criterion_epoch = getattr(self.criterion, 'set_epoch', None)
        if set_criterion_epoch is not None:
            set_criterion_epoch(epoch, epochs)

    def step(self, window: Window, progress: float) -> tuple[StepResult, list[Tensor]]:
        """One optimizer step.

        Args:
            window: The micro-batches.
            progress: Share of the epochs that will be over after this one, in (0, 1].

        Returns:
            What the step did, and the detached logits of each micro-batch.

        Raises:
            TrainingError: If the options of a sharpness-aware optimizer do not fit network, loss or labels.
        """
        closure = BatchClosure(
            self.model, self.criterion, window.inputs, window.targets, self.accelerator, labels=window.labels)
        try:
            result = optimizer_step(
                self.optimizer, closure, self.accelerator, clip_grad=self.clip_grad, clip_mode=self.clip_mode)
        except ValueError as e:
            if find_sharpness_aware(self.optimizer) is None:
                raise
            raise TrainingError(f'the optimizer cannot take a step of this run: {one_line(e)}') from e
        return result, closure.output

    def finish_step(self, updates: int) -> None:
        """Follow an update that was not skipped."""
        self.scheduler.step_update(updates)
        if self.ema is not None:
            self.ema.update(self._bare_model, updates)

    def finish_epoch(self) -> None:
        """Settle the model before it is evaluated."""

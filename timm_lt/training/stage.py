"""One stage of training, from an objective, images and loop options to a trained model and its logits."""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from .._registry import LOSSES
from .._unwrap import finished_model
from ..data import PairedLoader
from ..finetune import merge
from ..optim import find_sharpness_aware
from . import build
from .averaging import LastEpochs
from .checkpoint import load_checkpoint
from .checks import check_sample_values, check_stacked_passes
from .data import DataParts
from .evaluation import choose_epoch, evaluate, validation_metrics
from .learner import Learner
from .memory_format import wants_channels_last
from .options import Options
from .outputs import RunFolder
from .pipeline import InputPipeline
from .results import MetricRules, StageResult
from .trainer import Callback, Trainer
from .windows import Windows

_logger = logging.getLogger(__name__)


class Objective(Protocol):
    """Objective of a stage: a network, or a head on a frozen network."""

    def loader(self, stage: 'Stage') -> Any:
        """Batches of training images or features."""

    def learner(self, stage: 'Stage', criterion: nn.Module, updates_per_epoch: int) -> tuple[Learner, int]:
        """The learner, prepared by the stage's accelerator, and the number of epochs."""

    def validation(self, stage: 'Stage') -> Callable[[Trainer], dict[str, Any]]:
        """A function that measures the trainer's model on the validation part."""

    def callbacks(self, stage: 'Stage', criterion: nn.Module) -> tuple[Callback, ...]:
        """Actions beside the steps."""

    def finish(self, model: nn.Module) -> None:
        """Settle the trained model, before it is evaluated."""


@dataclass(frozen=True)
class Stage:
    """One stage of a run, the first or the second.

    Attributes:
        options: Options of this stage.
        accelerator: Accelerate's object of this stage alone.
        folder: Its checkpoints and its summary.
        data: The parts.
        pipeline: Makes loaders.
        rules: Rules of the metrics.
    """
    options: Options
    accelerator: Accelerator
    folder: RunFolder
    data: DataParts
    pipeline: InputPipeline
    rules: MetricRules

    def build(self, objective: Objective) -> Trainer:
        """Put together what the options name.

        Raises:
            ConfigError: If the options do not fit the objective or each other.
        """
        options, accelerator = self.options, self.accelerator
        distribution = self.data.distribution
        criterion = build.build_loss(
            options.loss, distribution, options.augmentation.mixes, options.augmentation.aug_splits)
        criterion = criterion.to(accelerator.device)
        mix, loader = build.build_mixing(options.augmentation, options.loss, distribution), objective.loader(self)
        if (sampler := getattr(mix, 'partners', None)) is not None:
            loader = PairedLoader(
                loader, self.pipeline.partners(self.data.train, sampler, options.schedule.epochs))
        windows = Windows(
            loader, grad_accum_steps=options.optimizer.grad_accum_steps, mix=mix,
            mixup_off_epoch=options.augmentation.mixup_off_epoch, seed=options.run.seed,
            rank=accelerator.process_index)
        learner, epochs = objective.learner(self, criterion, windows.updates_per_epoch)
        # dropout differs between processes, weights did not
        torch.manual_seed(options.run.seed + accelerator.process_index)
        validate = None
        if self.data.validation is not None:
            validate = objective.validation(self)
        return Trainer(
            learner, windows, epochs, self.rules.splits, self.folder, options.run, validate=validate,
            eval_metric=options.evaluation.eval_metric, patience=options.schedule.patience,
            callbacks=objective.callbacks(self, criterion))

    def train(self, trainer: Trainer, checkpoint: Path | None = None) -> None:
        """Run the epochs.

        Args:
            trainer: From :meth:`build`.
            checkpoint: Where to go on from; None: at the start.
        """
        if checkpoint is not None:
            load_checkpoint(self.accelerator, checkpoint)
            if self.accelerator.is_main_process:
                _logger.info(
                    'resumed %s; %d of %d epochs are finished', self.folder.path, trainer.progress.epoch,
                    trainer.epochs)
        trainer.fit()

    def result(self, objective: Objective, trainer: Trainer) -> StageResult:
        """Choose the reported epoch of a trained objective, and evaluate it on the test images."""
        epoch, chosen_by = choose_epoch(trainer, self.folder)
        model, progress = finished_model(trainer.learner.eval_model), trainer.progress
        objective.finish(model)
        logits, targets = self.evaluate(model, self.data.test)
        return StageResult(
            model, logits, targets, progress.epoch, epoch, chosen_by, progress.train_seconds, progress.images,
            progress.skipped, _weights(trainer.learner.ema))

    def validation_metric(self, model: nn.Module) -> float | None:
        """``--eval-metric`` of a model on the validation images, in percent; None without such images."""
        if self.data.validation is None:
            return None
        metrics = self.rules.report(*self.evaluate(model, self.data.validation), bootstrap=0)
        return metrics[self.options.evaluation.eval_metric]

    def evaluate(self, model: nn.Module, images: Any) -> tuple[Tensor, Tensor]:
        """Logits (N, C) of images under the evaluation transform, and their labels (N,)."""
        viewed = self.rules.evaluated(model, self.pipeline.config['input_size'])
        return evaluate(viewed, self.pipeline.evaluation(images, self.rules.tta), self.accelerator)


@dataclass(frozen=True)
class NetworkObjective:
    """The first stage: the weights of a network that are not frozen.

    Attributes:
        model: A timm model.
    """
    model: nn.Module

    def loader(self, stage: 'Stage') -> Any:
        options = stage.options
        views = LOSSES.trait(options.loss.loss, 'views', 1)
        view_scale = LOSSES.trait(options.loss.loss, 'view_scale', (0.2, 1.0))
        return stage.pipeline.training(stage.data.train, options.schedule.epochs, views, view_scale)

    def learner(self, stage: 'Stage', criterion: nn.Module, updates_per_epoch: int) -> tuple[Learner, int]:
        options, accelerator = stage.options, stage.accelerator
        model: Any = self.model
        if wants_channels_last(
                options.model.channels_last, model, accelerator.device, accelerator.mixed_precision):
            model = model.to(memory_format=torch.channels_last)
        if options.model.sync_bn and accelerator.num_processes > 1:
            model = nn.SyncBatchNorm.convert_sync_batchnorm(model)
        model = build.training_model(options.loss.loss, model).to(accelerator.device)
        ema = build.build_ema(options.model, model, updates_per_epoch * options.schedule.epochs)
        images_per_step = (
            options.data.batch_size * accelerator.num_processes * options.optimizer.grad_accum_steps)
        lr = build.scaled_lr(options.schedule, options.optimizer, images_per_step)
        optimizer = build.build_optimizer(options.optimizer, options.gkp, model, stage.data.distribution, lr)
        check_stacked_passes(optimizer, options.optimizer.opt, model)
        check_sample_values(
            criterion, options.loss.loss, optimizer, options.optimizer.opt, stage.data.distribution.num_classes,
            options.augmentation.mixes)
        if options.model.torchcompile:
            sharpness_aware = find_sharpness_aware(optimizer)
            if sharpness_aware is not None:
                sharpness_aware.attach(model)  # a compiled network no longer shows the input of its classifier
            model = torch.compile(model, backend=options.model.torchcompile, mode=options.model.torchcompile_mode)
        model, optimizer = accelerator.prepare(model, optimizer)
        scheduler, epochs = build.build_scheduler(options.schedule, optimizer, updates_per_epoch, options.run.seed)
        return Learner(
            accelerator, model, criterion, optimizer, scheduler, options.optimizer.clip_grad,
            options.optimizer.clip_mode, ema), epochs

    def validation(self, stage: 'Stage') -> Callable[[Trainer], dict[str, Any]]:
        return image_validation(stage)

    def callbacks(self, stage: 'Stage', criterion: nn.Module) -> tuple[Callback, ...]:
        options, distribution = stage.options, stage.data.distribution
        callbacks = build.build_drw(options.loss, criterion, distribution)
        if options.gkp.gkp:
            images = stage.pipeline.quality_images(options.gkp, stage.data)
            callbacks += (build.build_gkp(
                options.gkp, options.run.seed, images, distribution, stage.rules.splits),)
        if options.model.average_last:
            callbacks += (LastEpochs(options.model.average_last),)
        return callbacks

    def finish(self, model: nn.Module) -> None:
        merge(model)  # what is evaluated and stored has plain weights, where the method allows it


def image_validation(stage: Stage) -> Callable[[Trainer], dict[str, Any]]:
    """A function that measures the network of a trainer on the validation images."""
    images = stage.pipeline.evaluation(stage.data.validation, stage.rules.tta)
    size = stage.pipeline.config['input_size']
    return validation_metrics(images, stage.rules, lambda learner: stage.rules.evaluated(learner.plain_model, size))


def _weights(ema: Any) -> str:
    if ema is None:
        return 'raw'
    return 'moving average, its decay warmed up' if ema.use_warmup else 'moving average'

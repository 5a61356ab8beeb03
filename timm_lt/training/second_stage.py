"""The second stage of a run: a method of :mod:`timm_lt.two_stage` on the model that the first stage left."""

import copy
import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from accelerate.utils import set_seed
from timm.optim import create_optimizer_v2
from torch import Tensor

from .._files import whole_file
from .._registry import LOSSES, SECOND_STAGES
from ..models.cosine_classifier import CosineClassifier
from ..two_stage import SecondStageMethod, create_second_stage
from . import build
from .checkpoint import find_checkpoint
from .checks import check_second_stage_sample_values
from .errors import ConfigError
from .evaluation import evaluate
from .features import FeatureModel, feature_loader
from .head_learner import FrozenModel, HeadLearner
from .learner import Learner
from .options import Options, SecondStageOptions
from .outputs import RunFolder
from .results import StageResult
from .stage import Stage, image_validation
from .trainer import Callback, Trainer

_logger = logging.getLogger(__name__)

HEAD_FILE = 'head.safetensors'


@dataclass
class SecondStageResult:
    """The result of a second stage.

    Attributes:
        result: The network with the method's classifier, and its logits of the test images.
        exported: Model for ``hub/``. It is the model of ``result``, or of the first stage where the head is no plain
            classifier.
        info: Facts about the stage, for ``metrics.json``.
    """
    result: StageResult
    exported: nn.Module
    info: dict[str, Any]


def create_method(options: SecondStageOptions, class_counts: Any, validation: bool) -> SecondStageMethod:
    """The method that ``--stage2`` names, with ``--stage2-kwargs``.

    Args:
        options: Names the method.
        class_counts: Training images per class, (C,).
        validation: There is a validation part.

    Raises:
        ConfigError: If the options do not fit the method or each other.
    """
    name = str(options.stage2)
    try:
        method = create_second_stage(name, class_counts, **options.stage2_kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--stage2: {e}') from e
    if not method.trained:
        for what in ('epochs', 'lr', 'sampler', 'loss'):
            if getattr(options, f'stage2_{what}') is not None:
                raise ConfigError(f'--stage2 {name} is fitted in closed form: --stage2-{what} has no meaning')
    if options.stage2_cache_features and not method.caches_features:
        raise ConfigError(f'--stage2 {name} changes the features while it trains: they cannot be cached')
    if LOSSES.trait(options.stage2_loss or method.loss, 'views', 1) > 1:
        raise ConfigError(
            f'--stage2-loss {options.stage2_loss} compares several views of an image, and the second stage has one; '
            f'choose another loss')
    if 'validation' in SECOND_STAGES.info(name).needs and getattr(method, 'tau', None) is None and not validation:
        raise ConfigError(
            f'--stage2 {name} chooses on validation images: cut a part from the training images '
            f'(--val-fraction 0.1), or give the value (--stage2-kwargs tau=0.7)')
    return method


def check_second_stage(options: Options, data: Any, model: nn.Module) -> nn.Module:
    """Raise a ConfigError now, before the first stage, where the second could not begin on this model.

    Returns:
        A copy of the model with the classifier that the second stage will leave, not trained.
    """
    final = copy.deepcopy(model)
    with torch.random.fork_rng([]):
        method = _prepared(options.second_stage, data, final)
    if method.trained:
        loss = stage_options(options, method).loss
        check_second_stage_sample_values(
            build.build_loss(loss, data.distribution), loss.loss, str(options.second_stage.stage2),
            data.distribution.num_classes)
    method.finish(final)
    return final


def _prepared(options: SecondStageOptions, data: Any, model: nn.Module) -> SecondStageMethod:
    method = create_method(options, data.distribution.counts, data.validation is not None)
    try:
        method.prepare(model)
    except ValueError as e:
        raise ConfigError(f'--stage2 {options.stage2}: {e}') from e
    # a classifier that has a scale would be scaled twice
    cosines = any(isinstance(m, CosineClassifier) and float(m.scale) == 1 for m in method.modules())
    if LOSSES.trait(options.stage2_loss or method.loss, 'cosine_classifier', False) and not cosines:
        raise ConfigError(
            f'--stage2-loss {options.stage2_loss} is defined on cosines, which the classifier of this model does not '
            f'give; choose another loss, or give --loss {options.stage2_loss} too, which makes it a cosine classifier')
    return method


def stage_options(options: Options, method: SecondStageMethod) -> Options:
    """The options of the second stage: its own epochs, rate, sampler and loss; no mixing, no warm-up."""
    given = options.second_stage
    return options.replace(
        epochs=method.epochs if given.stage2_epochs is None else given.stage2_epochs,
        lr=method.lr if given.stage2_lr is None else given.stage2_lr,
        loss=given.stage2_loss or method.loss, loss_kwargs={}, smoothing=0.0,
        sampler=given.stage2_sampler or method.sampler, sampler_kwargs={}, aug_repeats=0,
        patience=0, mix=None, mix_kwargs={}, mixup=0.0, cutmix=0.0, cutmix_minmax=None, sched='cosine',
        warmup_epochs=0, cooldown_epochs=0, lr_noise=None, lr_cycle_limit=1, lr_k_decay=1.0)


def run_second_stage(stage: Stage, model: nn.Module) -> SecondStageResult:
    """Run the second stage on a trained model, resuming it where its folder has a checkpoint.

    Args:
        stage: With the options of the run, and an accelerator and a folder of the second stage alone.
        model: The trained timm model without wrappers, on the device; changed.
    """
    options, given = stage.options, stage.options.second_stage
    set_seed(options.run.seed)
    before = copy.deepcopy(model)
    method = _prepared(given, stage.data, model)
    no_aug = options.augmentation.no_aug
    cached = method.caches_features and (
        not method.trained or (no_aug if given.stage2_cache_features is None else given.stage2_cache_features))
    features: Any = None
    if cached:
        unaugmented = method.trained and no_aug  # training has no random transform either
        pipeline, train = stage.pipeline, stage.data.train
        loader = pipeline.unaugmented(train) if unaugmented else pipeline.evaluation(train)
        features = evaluate(FeatureModel(model), loader, stage.accelerator)
    info: dict[str, Any] = {'method': given.stage2, 'cached_features': cached}
    if method.trained:
        result, plain, done = _train(stage, HeadObjective(model, method, features))
    else:
        done = _fit(stage, model, method, features)
        plain = method.finish(model)
        result = StageResult(model, *stage.evaluate(model, stage.data.test))
    info |= done
    info['exported'] = (
        'plain classifier' if plain else f'{stage.folder.path.name}/{HEAD_FILE}; hub/ holds the first stage')
    if not plain:
        save_head(stage.folder, method)
    # the hub folder holds a model that timm can load
    return SecondStageResult(result, model if plain else before, info)


def warn_if_worse(stage: Stage, before: float | None, model: nn.Module) -> None:
    """Warn where the model after the second stage is worse on the validation images than the one before.

    Args:
        stage: The first stage.
        before: Validation metric of its model, in percent; None: there are no validation images.
        model: After the second stage.
    """
    after = stage.validation_metric(model)
    if before is not None and after is not None and after < before and stage.accelerator.is_main_process:
        _logger.warning(
            'the second stage made the network worse on the validation images: %s fell from %.2f%% to %.2f%%; try a '
            'lower --stage2-lr, other --stage2-kwargs, or no second stage', stage.options.evaluation.eval_metric,
            before, after)


def _train(run: Stage, objective: 'HeadObjective') -> tuple[StageResult, bool, dict[str, Any]]:
    options = stage_options(run.options, objective.method)
    stage = replace(
        run, options=options, pipeline=replace(run.pipeline, data=options.data, augmentation=options.augmentation))
    trainer = stage.build(objective)
    if stage.accelerator.is_main_process:
        _logger.info(
            'second stage %s: loss %s, sampler %s, %d epochs, lr %g%s', options.second_stage.stage2, options.loss.loss,
            options.data.sampler, trainer.epochs, options.schedule.lr,
            ', cached features' if objective.features is not None else '')
    checkpoint = find_checkpoint(stage.folder.path) if options.run.resume else None
    stage.train(trainer, checkpoint)
    result = stage.result(objective, trainer)
    return result, objective.plain, {
        'epochs': result.epochs, 'lr': options.schedule.lr, 'loss': options.loss.loss,
        'sampler': options.data.sampler, 'reported_epoch': result.reported_epoch,
        'epoch_chosen_by': result.chosen_by, 'wall_seconds': round(result.seconds, 3),
        'images_per_second': round(result.images_per_second, 2)}


def _fit(stage: Stage, model: nn.Module, method: SecondStageMethod, features: tuple[Tensor, Tensor]) -> dict[str, Any]:
    validation: tuple = (None, None)
    if stage.data.validation is not None:
        validation = evaluate(
            FeatureModel(model), stage.pipeline.evaluation(stage.data.validation), stage.accelerator)
    try:
        chosen = method.fit(*features, *validation)
    except ValueError as e:
        raise ConfigError(f'--stage2 {stage.options.second_stage.stage2}: {e}') from e
    return {**chosen, 'epochs': 0, 'wall_seconds': 0.0, 'images_per_second': 0.0}


@dataclass
class HeadObjective:
    """The classifier of a frozen network.

    Attributes:
        model: The frozen timm model, with the method's head in place of its classifier.
        method: The method.
        features: Features (N, D) and labels (N,) of the training images, computed once; None: computed at each step.
        plain: After :meth:`finish`, whether the head is a plain classifier.
    """
    model: nn.Module
    method: SecondStageMethod
    features: tuple[Tensor, Tensor] | None = None
    plain: bool = False

    def __post_init__(self) -> None:
        self.frozen = FrozenModel(self.model, self.method)

    def loader(self, stage: Stage) -> Any:
        if self.features is None:
            return stage.pipeline.training(stage.data.train, stage.options.schedule.epochs)
        return feature_loader(stage, self.features[0][None], self.features[1], '--stage2-sampler')

    def learner(self, stage: Stage, criterion: nn.Module, updates_per_epoch: int) -> tuple[Learner, int]:
        options, accelerator = stage.options, stage.accelerator
        optimizer = create_optimizer_v2(
            self.method.param_groups(), opt='sgd', lr=options.schedule.lr,
            weight_decay=options.optimizer.weight_decay, momentum=options.optimizer.momentum)
        prepared, optimizer = accelerator.prepare(self.method.to(accelerator.device), optimizer)
        scheduler, epochs = build.build_scheduler(options.schedule, optimizer, updates_per_epoch, options.run.seed)
        learner = HeadLearner(
            accelerator, prepared, criterion, optimizer, scheduler, options.optimizer.clip_grad,
            options.optimizer.clip_mode, frozen=self.frozen, cached=self.features is not None)
        return learner, epochs

    def validation(self, stage: Stage) -> Callable[[Trainer], dict[str, Any]]:
        return image_validation(stage)

    def callbacks(self, stage: Stage, criterion: nn.Module) -> tuple[Callback, ...]:
        return (self.frozen,)

    def finish(self, model: nn.Module) -> None:
        self.plain = self.method.finish(model)


def save_head(folder: RunFolder, method: SecondStageMethod) -> None:
    """The head, as ``method.load_state_dict`` reads it back after ``method.prepare(model)``."""
    if folder.writes:
        from safetensors.torch import save_file
        state = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
        with whole_file(Path(folder.path) / HEAD_FILE) as temporary:
            save_file(state, str(temporary))

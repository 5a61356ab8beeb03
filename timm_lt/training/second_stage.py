"""The second stage of a run: a method of :mod:`timm_lt.two_stage` on the model that the first stage left."""

import copy
import logging
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from accelerate.utils import set_seed
from timm.optim import create_optimizer_v2
from timm.utils import dispatch_clip_grad
from torch import Tensor

from .._files import whole_file
from .._registry import LOSSES, STAGE2
from ..class_distribution import ClassDistribution
from ..data import EpochBatches, create_eval_loader
from ..models.cosine_classifier import CosineClassifier
from ..optim import StepResult
from ..samplers import create_sampler
from ..two_stage import Stage2Method, batchnorm_layers, classifier_inputs, create_stage2
from . import build
from .checkpoint import find_checkpoint, load_checkpoint
from .checks import check_stage2_sample_values
from .config import ConfigError
from .data import DataParts, build_augmentation, build_loaders, evaluation_loader, sampler_options
from .evaluation import choose_epoch, evaluate, validation_figures
from .outputs import RunFolder
from .trainer import Callback, Trainer

_logger = logging.getLogger(__name__)

HEAD_FILE = 'head.safetensors'


@dataclass
class SecondStage:
    """What a second stage gave.

    Attributes:
        logits: Of the test images, (N, C).
        targets: Their labels, (N,).
        model: The model with the method's classifier.
        exported: The model for ``hub/``: ``model``, or that of the first stage where the head is no plain classifier.
        info: What was done, for ``metrics.json``.
    """
    logits: Tensor
    targets: Tensor
    model: nn.Module
    exported: nn.Module
    info: dict[str, Any]


def create_method(args: Namespace, class_counts: Any) -> Stage2Method:
    """The method that ``--stage2`` names, with ``--stage2-kwargs``.

    Raises:
        ConfigError: If the options do not fit the method or each other.
    """
    try:
        method = create_stage2(args.stage2, class_counts, **args.stage2_kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--stage2: {e}') from e
    if not method.trained:
        for name in ('epochs', 'lr', 'sampler', 'loss'):
            if getattr(args, f'stage2_{name}') is not None:
                raise ConfigError(f'--stage2 {args.stage2} is fitted in closed form: --stage2-{name} has no meaning')
    if args.stage2_cache_features and not method.caches_features:
        raise ConfigError(f'--stage2 {args.stage2} changes the features while it trains: they cannot be cached')
    if _loss_trait(args, method, 'views', 1) > 1:
        raise ConfigError(
            f'--stage2-loss {args.stage2_loss} compares several views of an image, and the second stage has one; '
            f'choose another loss')
    if 'validation' in STAGE2.info(args.stage2).needs and getattr(method, 'tau', None) is None and not (
            args.val_split or args.val_fraction):
        raise ConfigError(
            f'--stage2 {args.stage2} chooses on validation images: cut a part from the training images '
            f'(--val-fraction 0.1), or give the value (--stage2-kwargs tau=0.7)')
    return method


def check_stage2(args: Namespace, class_counts: Any, model: nn.Module) -> nn.Module:
    """Raise a ConfigError now, before the first stage, where the second could not begin on this model.

    Returns:
        A copy of the model with the classifier that the second stage will leave, not trained.
    """
    final = copy.deepcopy(model)
    with torch.random.fork_rng([]):
        method = _prepared(args, class_counts, final)
    if method.trained:
        options = second_stage_args(args, method)
        criterion = build.build_loss(options, ClassDistribution(class_counts))
        check_stage2_sample_values(options, criterion, len(class_counts))
    method.finish(final)
    return final


def _prepared(args: Namespace, class_counts: Any, model: nn.Module) -> Stage2Method:
    method = create_method(args, class_counts)
    try:
        method.prepare(model)
    except ValueError as e:
        raise ConfigError(f'--stage2 {args.stage2}: {e}') from e
    # a classifier with a scale of its own would be scaled twice
    cosines = any(isinstance(m, CosineClassifier) and float(m.scale) == 1 for m in method.modules())
    if _loss_trait(args, method, 'cosine_classifier', False) and not cosines:
        raise ConfigError(
            f'--stage2-loss {args.stage2_loss} is defined on cosines, which the classifier of this model does not '
            f'give; choose another loss, or give --loss {args.stage2_loss} too, which makes it a cosine classifier')
    return method


def _loss_trait(args: Namespace, method: Stage2Method, trait: str, default: Any) -> Any:
    return LOSSES.trait(args.stage2_loss or method.loss, trait, default)


def second_stage_args(args: Namespace, method: Stage2Method) -> Namespace:
    """The options as the second stage reads them: its own epochs, rate, sampler and loss, no mixing, no warm-up."""
    own = {
        'epochs': args.stage2_epochs if args.stage2_epochs is not None else method.epochs,
        'lr': args.stage2_lr if args.stage2_lr is not None else method.lr,
        'loss': args.stage2_loss or method.loss, 'loss_kwargs': {},
        'sampler': args.stage2_sampler or method.sampler, 'sampler_kwargs': {},
        'smoothing': 0.0, 'mixup': 0.0, 'cutmix': 0.0, 'cutmix_minmax': None, 'sched': 'cosine', 'warmup_epochs': 0,
        'cooldown_epochs': 0, 'lr_noise': None, 'lr_cycle_limit': 1, 'lr_k_decay': 1.0,
    }
    return Namespace(**{**vars(args), **own})


def run_stage2(
        args: Namespace,
        accelerator: Accelerator,
        folder: RunFolder,
        model: nn.Module,
        data: DataParts,
        data_config: dict[str, Any],
        rule: str,
) -> SecondStage:
    """Run the second stage on a trained model, resuming it where ``folder`` has a checkpoint of it.

    Args:
        args: Options of the run, ``args.stage2`` names the method.
        accelerator: Accelerate's object of this stage, a fresh one.
        folder: Of this stage.
        model: The trained timm model without wrappers, on the device; changed.
        data: The parts.
        data_config: timm's data configuration of the model.
        rule: Rule of the many / medium / few split.
    """
    set_seed(args.seed)
    before = copy.deepcopy(model)
    method = _prepared(args, data.distribution.counts, model)
    options = second_stage_args(args, method)
    cached = method.caches_features and (
        not method.trained or (args.no_aug if args.stage2_cache_features is None else args.stage2_cache_features))
    info: dict[str, Any] = {'method': args.stage2, 'cached_features': cached}
    features = None
    if cached:
        train = fixed_loader(args, data.train, data_config, accelerator, as_trained=method.trained)
        features = evaluate(FeatureModel(model), train, accelerator)

    if method.trained:
        trainer = build_stage2_trainer(options, accelerator, folder, model, method, data, data_config, features, rule)
        checkpoint = find_checkpoint(folder.path) if args.resume else None
        if checkpoint is not None:
            load_checkpoint(accelerator, checkpoint)
            _logger.info('resumed the second stage at epoch %d', trainer.progress.epoch)
        if accelerator.is_main_process:
            _logger.info(
                'second stage %s: loss %s, sampler %s, %d epochs, lr %g%s', args.stage2, options.loss, options.sampler,
                trainer.epochs, options.lr, ', cached features' if cached else '')
        trainer.fit()
        epoch, chosen_by = choose_epoch(trainer, accelerator, folder)
        info |= {
            'epochs': trainer.epochs, 'lr': options.lr, 'loss': options.loss, 'sampler': options.sampler,
            'reported_epoch': epoch, 'epoch_chosen_by': chosen_by,
            'wall_seconds': round(trainer.progress.train_seconds, 3),
            'images_per_second': round(trainer.progress.images / max(trainer.progress.train_seconds, 1e-9), 2)}
    else:
        validation = (None, None)
        if data.validation is not None:
            validation = evaluate(
                FeatureModel(model), evaluation_loader(args, data.validation, data_config, accelerator), accelerator)
        try:
            info |= method.fit(*features, *validation)
        except ValueError as e:
            raise ConfigError(f'--stage2 {args.stage2}: {e}') from e
        info |= {'epochs': 0, 'wall_seconds': 0.0, 'images_per_second': 0.0}

    plain = method.finish(model)
    logits, targets = evaluate(model, evaluation_loader(args, data.test, data_config, accelerator), accelerator)
    info['exported'] = 'plain classifier' if plain else f'{folder.path.name}/{HEAD_FILE}; hub/ holds the first stage'
    if not plain:
        save_head(folder, method)
    # what the hub folder holds is a model that timm can load
    return SecondStage(logits, targets, model, model if plain else before, info)


def fixed_loader(
        args: Namespace, images: Any, config: dict[str, Any], accelerator: Accelerator, as_trained: bool) -> Any:
    """Every training image once: as in training where nothing there is random (--no-aug), else as in evaluation."""
    if not (args.no_aug and as_trained):
        return evaluation_loader(args, images, config, accelerator)
    augmentation = build_augmentation(args, config, images)
    as_they_are = getattr(images, 'image_size', None) == augmentation.input_size
    return create_eval_loader(
        images, config['mean'], config['std'], args.validation_batch_size or max(args.batch_size, 128),
        transform=None if as_they_are else augmentation.image_transform(), device=accelerator.device,
        world=accelerator.num_processes, rank=accelerator.process_index, workers=args.workers)


def save_head(folder: RunFolder, method: Stage2Method) -> None:
    """The head, as ``method.load_state_dict`` reads it back after ``method.prepare(model)``."""
    if folder.writes:
        from safetensors.torch import save_file
        state = {k: v.detach().cpu().contiguous() for k, v in method.state_dict().items()}
        with whole_file(folder.path / HEAD_FILE) as temporary:
            save_file(state, str(temporary))


class FeatureModel(nn.Module):
    """Images to the input of the classifier.

    Args:
        model: A timm model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return classifier_inputs(self.model, images)


class FeatureLoader:
    """Batches of features that were computed once, in the order of a sampler.

    Args:
        features: (N, D).
        targets: (N,).
        batches: Which of them make up a step.
        device: Where batches go.
    """

    def __init__(self, features: Tensor, targets: Tensor, batches: EpochBatches, device: torch.device) -> None:
        self.features = features
        self.targets = targets
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        self.batches.set_epoch(epoch, start_step)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            index = batch.indices.to(self.features.device)
            yield self.features[index].to(self.device), self.targets[index].to(self.device)


class FrozenModel(Callback):
    """Keeps the frozen model in the method's mode, and its BatchNorm statistics, where they move, in the checkpoint."""

    def __init__(self, model: nn.Module, method: Stage2Method) -> None:
        self.model = model
        self.method = method

    def on_epoch_start(self, trainer: Trainer, epoch: int) -> None:
        self.method.set_mode(self.model)

    def average(self, accelerator: Accelerator) -> None:
        """Average the statistics over processes, which saw different images."""
        if self.method.caches_features or accelerator.num_processes == 1:
            return
        for layer in batchnorm_layers(self.model):
            for buffer in (layer.running_mean, layer.running_var):
                buffer.copy_(accelerator.reduce(buffer, reduction='mean'))

    def _buffers(self) -> dict[str, Tensor]:
        if self.method.caches_features:
            return {}
        return {f'{i}.{n}': b for i, m in enumerate(batchnorm_layers(self.model)) for n, b in m.named_buffers()}

    def state_dict(self) -> dict[str, Any]:
        return {name: buffer.clone() for name, buffer in self._buffers().items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for name, buffer in self._buffers().items():
            buffer.copy_(state[name])


class Stage2Trainer(Trainer):
    """The training loop of the second stage: only the method's head is trained and checkpointed.

    Args:
        frozen: The frozen model and its method.
        cached: Batches hold features instead of images.
    """

    def __init__(self, *args: Any, frozen: FrozenModel, cached: bool, **kwargs: Any) -> None:
        super().__init__(*args, callbacks=(frozen,), **kwargs)
        self.frozen = frozen
        self.cached = cached

    @property
    def plain_model(self) -> nn.Module:
        return self.frozen.model

    def _finish_epoch(self, row: dict[str, Any]) -> None:
        self.frozen.average(self.accelerator)
        super()._finish_epoch(row)

    def step(
            self, inputs: list[Tensor], targets: list[Tensor], labels: list[Tensor]) -> tuple[StepResult, list[Tensor]]:
        accelerator, method = self.accelerator, self.frozen.method
        progress = (self.progress.epoch + 1) / self.epochs
        total, outputs = 0, []
        # the mean over the micro-batches of all processes; gradients are averaged over processes afterwards
        shares = torch.stack([method.normalizer(target, self.criterion) for target in targets]).float()
        shares = shares / accelerator.reduce(shares.sum(), reduction='mean')
        for i, (features, target) in enumerate(zip(inputs, targets)):
            last = i == len(inputs) - 1
            with accelerator.autocast():
                if not self.cached:
                    features = classifier_inputs(self.frozen.model, features)
                with torch.no_grad():
                    outputs.append(method.logits(features))
            with torch.enable_grad() if last else accelerator.no_sync(self.model):
                loss = self.model(features, target, self.criterion, progress) * shares[i]
                accelerator.backward(loss)
            total = total + loss.detach()
        if self.clip_grad is not None:
            accelerator.unscale_gradients(self.optimizer)
            dispatch_clip_grad(method.trained_parameters(), value=self.clip_grad, mode=self.clip_mode)
        self.optimizer.step()
        skipped = bool(self.optimizer.step_was_skipped)
        self.optimizer.zero_grad()
        return StepResult(total, skipped), outputs


def build_stage2_trainer(
        options: Namespace,
        accelerator: Accelerator,
        folder: RunFolder,
        model: nn.Module,
        method: Stage2Method,
        data: DataParts,
        data_config: dict[str, Any],
        features: tuple[Tensor, Tensor] | None,
        rule: str,
) -> Stage2Trainer:
    """Put together what ``options`` (see :func:`second_stage_args`) name."""
    distribution = data.distribution
    if features is None:
        loader, val_loader, _ = build_loaders(options, data, data_config, accelerator)
    else:
        try:
            sampler = create_sampler(
                options.sampler, features[1].cpu(), seed=options.seed, **sampler_options(options))
        except (TypeError, ValueError) as e:
            raise ConfigError(f'--stage2-sampler {options.sampler!r}: {e}') from e
        batches = EpochBatches(
            sampler, options.batch_size, world=accelerator.num_processes, rank=accelerator.process_index)
        loader = FeatureLoader(*features, batches, accelerator.device)
        val_loader = None
        if data.validation is not None:
            val_loader = evaluation_loader(options, data.validation, data_config, accelerator)
    criterion = build.build_loss(options, distribution).to(accelerator.device)
    optimizer = create_optimizer_v2(
        method.param_groups(), opt='sgd', lr=options.lr, weight_decay=options.weight_decay, momentum=options.momentum)
    prepared, optimizer = accelerator.prepare(method.to(accelerator.device), optimizer)
    updates = -(-len(loader) // options.grad_accum_steps)
    scheduler, epochs = build.build_scheduler(options, optimizer, updates)
    torch.manual_seed(options.seed + accelerator.process_index)

    validate = None
    if val_loader is not None:
        validate = validation_figures(val_loader, accelerator, distribution, rule)
    return Stage2Trainer(
        accelerator, prepared, criterion, optimizer, scheduler, loader, splits=distribution.splits(rule), epochs=epochs,
        folder=folder, seed=options.seed, grad_accum_steps=options.grad_accum_steps, clip_grad=options.clip_grad,
        clip_mode=options.clip_mode, validate=validate, checkpoint_every=options.checkpoint_every,
        checkpoint_steps=options.checkpoint_steps, log_interval=options.log_interval, quiet=options.quiet,
        frozen=FrozenModel(model, method), cached=features is not None)

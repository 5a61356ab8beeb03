"""Model, loss, optimizer and schedule of a stage, each from its options, through timm's factories."""

import copy
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from safetensors import SafetensorError
from timm.data import Mixup, resolve_input_data_config
from timm.data.mixup import mixup_target
from timm.optim import create_optimizer_v2
from timm.scheduler import create_scheduler_v2, scheduler_kwargs
from timm.utils import ModelEmaV3
from torch import Tensor

from .._classifier import find_classifier, kind_of_classifier
from .._registry import LOSSES, OPTIMIZERS, MethodInfo, call_factory
from .._timm_hooks import list_networks
from ..class_distribution import ClassDistribution
from ..data import BatchMixing, create_mixing
from ..losses import create_loss
from ..losses.drw import DeferredReweighting
from ..models.cosine_classifier import use_cosine_classifier
from .aug_splits import SplitLoss, SplitModel
from .errors import ConfigError, one_line
from .options import (
    AugmentationOptions,
    GKPOptions,
    LossOptions,
    ModelOptions,
    OptimizerOptions,
    ScheduleOptions,
)
from .trainer import Callback

EMA_INITIAL_SHARE = 0.01
COSINE_SCALE = 16.0  # of the classifier, for losses without a scale
# raised by timm for a model that its arguments or weights do not fit
MODEL_ERRORS = (AssertionError, AttributeError, KeyError, OSError, RuntimeError, ValueError, SafetensorError)


def cosine_scale(options: ModelOptions, loss: str) -> float | None:
    """Scale of a cosine classifier, None for a plain one. The option decides, else the need of the loss."""
    on_cosines = LOSSES.trait(loss, 'cosine_classifier', False)
    wanted = on_cosines if options.cosine_classifier is None else options.cosine_classifier
    if not wanted:
        return None
    if not on_cosines:
        return options.cosine_scale or COSINE_SCALE
    if options.cosine_scale is not None:
        raise ConfigError(
            f'--loss {loss} scales the cosines itself: leave out --cosine-scale and give --loss-kwargs scale=...')
    return 1.0


def build_model(options: ModelOptions, num_classes: int, cosine: float | None = None) -> tuple[nn.Module, dict]:
    """Create the network.

    Args:
        options: Names the model.
        num_classes: Outputs of its classifier.
        cosine: Scale of its cosine classifier; None: a plain classifier.

    Returns:
        The model, and the arguments that rebuild it from a saved folder.

    Raises:
        ConfigError: If the model does not take the options.
    """
    if options.model is None:
        raise ConfigError('no network is chosen; name one by --model')
    if options.initial_checkpoint and not Path(options.initial_checkpoint).is_file():
        raise ConfigError(f'--initial-checkpoint {options.initial_checkpoint}: there is no such file')
    further = {'global_pool': options.gp, 'bn_eps': options.bn_eps}
    rebuild = {k: v for k, v in further.items() if v is not None} | options.model_kwargs
    size = {'input_size': options.input_size, 'img_size': options.img_size, 'in_chans': options.in_chans}
    doing = 'cannot be created'
    try:
        # as in timm's script: channels and, where the network has a fixed size, the size of the images
        arguments = timm.models.resolve_model_input_args(options.model, size, **rebuild)
        if options.experts:
            own = {'network': arguments['model_name'], 'num_experts': options.experts}
            rebuild |= own
            arguments |= {'model_name': 'experts_network', **own}
        if cosine is not None and arguments['model_name'] in list_networks():
            rebuild.setdefault('cosine_scale', cosine)
            arguments['cosine_scale'] = rebuild['cosine_scale']  # also over that of a saved folder
        model: Any = timm.create_model(**arguments | {
            'pretrained': options.pretrained, 'num_classes': num_classes, 'drop_rate': options.drop,
            'drop_path_rate': options.drop_path, 'drop_block_rate': options.drop_block,
            'checkpoint_path': options.initial_checkpoint})
        if cosine is not None and 'cosine_scale' not in arguments:
            doing = 'cannot take the cosine classifier that the loss or --cosine-classifier asks for'
            use_cosine_classifier(model, scale=cosine)
        doing = 'cannot take --head-init-scale, --head-init-bias or --bn-momentum'
        _initialize(options, model)
        if options.grad_checkpointing:
            doing = 'does not support --grad-checkpointing'
            model.set_grad_checkpointing(True)
    except TypeError as e:
        raise ConfigError(f'model {options.model!r} does not take these options: {one_line(e)}') from e
    except MODEL_ERRORS as e:
        given = {'--pretrained': options.pretrained, '--initial-checkpoint': options.initial_checkpoint}
        sources = [flag for flag, value in given.items() if value]
        using = f' with {" and ".join(sources)}' if sources and 'created' in doing else ''
        raise ConfigError(f'model {options.model!r} {doing}{using}: {one_line(e)}') from e
    return model, rebuild


def _initialize(options: ModelOptions, model: nn.Module) -> None:
    """Change the initial classifier and BatchNorm's momentum, where that is asked for; as in timm's script."""
    scale, bias, momentum = options.head_init_scale, options.head_init_bias, options.bn_momentum
    if scale is not None or bias is not None:
        head = find_classifier(model)
        if not isinstance(head, nn.Linear):
            raise ValueError(f'its classifier must be one linear layer, got {kind_of_classifier(model)}')
        with torch.no_grad():
            if scale is not None:
                for parameter in head.parameters():
                    parameter.mul_(scale)
            if bias is not None:
                if head.bias is None:
                    raise ValueError('its classifier has no bias')
                head.bias.fill_(bias)
    if momentum is not None:
        layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not layers:
            raise ValueError('it has no BatchNorm layer')
        for layer in layers:
            layer.momentum = momentum


def training_model(loss: str, model: nn.Module) -> nn.Module:
    """The model with the heads that the loss needs in training only."""
    wrap_model = SplitModel if loss == 'jsd' else LOSSES.trait(loss, 'wrap_model', None)
    try:
        return model if wrap_model is None else wrap_model(model)
    except ValueError as e:
        raise ConfigError(f'loss {loss}: {e}') from e


def data_config(options: ModelOptions, model: nn.Module) -> dict[str, Any]:
    """Input size, mean, deviation, interpolation and crop of the model, less what the options override."""
    names = ('in_chans', 'input_size', 'img_size', 'crop_pct', 'mean', 'std', 'interpolation')
    given = {name: getattr(options, name) for name in names if getattr(options, name)}
    try:
        config = resolve_input_data_config(model, given)
    except ValueError as e:
        raise ConfigError(f'model {options.model!r}: {e}') from e
    if config['input_size'][0] not in (1, 3):
        raise ConfigError(
            f'images are read with 1 (grey) or 3 (RGB) channels; the model is to take {config["input_size"][0]} '
            f'(--in-chans, --input-size, --model-kwargs in_chans)')
    return config


def check_forward(options: ModelOptions, model: nn.Module, input_size: tuple[int, ...], batch_size: int) -> None:
    """Raise a ConfigError where the model cannot take an image of the input size, or a batch in training.

    BatchNorm has no variance of one value, so it refuses one image whose map has one pixel.
    """
    image = torch.zeros(1, *input_size)
    trial = copy.deepcopy(model) if batch_size == 1 else model
    training = model.training
    try:
        with torch.no_grad(), torch.random.fork_rng([]):
            trial.train(batch_size == 1)(image)
    except Exception as e:  # networks raise different errors for sizes that they cannot take
        size = 'x'.join(map(str, input_size))
        one = '; give a larger --batch-size' if batch_size == 1 else ''
        raise ConfigError(f'model {options.model!r} cannot take an image of {size} (--img-size): '
                          f'{one_line(e)}{one}') from e
    finally:
        model.train(training)


class LabelSmoothing:
    """Smoothed soft targets, for losses without an option for them."""

    def __init__(self, num_classes: int, smoothing: float) -> None:
        self.num_classes = num_classes
        self.smoothing = smoothing

    def __call__(self, input: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return input, mixup_target(label, self.num_classes, lam=1.0, smoothing=self.smoothing)


def build_mixing(
        options: AugmentationOptions, loss: LossOptions, distribution: ClassDistribution,
) -> BatchMixing | Mixup | LabelSmoothing | None:
    """A function of a batch that gives mixed inputs and soft targets, or None."""
    num_classes = distribution.num_classes
    if options.mix:
        try:
            mixing = create_mixing(options.mix, distribution.counts, **options.mix_kwargs)
        except (TypeError, ValueError) as e:
            raise ConfigError(f'--mix-kwargs: {e}') from e
        mixing.smoothing = loss.smoothing
        return mixing
    if options.mixup_or_cutmix:
        return Mixup(
            mixup_alpha=options.mixup, cutmix_alpha=options.cutmix, cutmix_minmax=options.cutmix_minmax,
            prob=options.mixup_prob, switch_prob=options.mixup_switch_prob, mode=options.mixup_mode,
            label_smoothing=loss.smoothing, num_classes=num_classes)
    if loss.smoothing > 0 and (loss.loss in LOSSES or loss.loss == 'ce'):
        return LabelSmoothing(num_classes, loss.smoothing)
    return None


def build_loss(
        options: LossOptions, distribution: ClassDistribution, soft_targets: bool = False, splits: int = 0,
) -> nn.Module:
    """The training loss; class counts come from the training images that are really used."""
    kwargs = dict(options.loss_kwargs)
    try:
        if options.loss in LOSSES:
            return create_loss(options.loss, class_counts=distribution.counts, **kwargs)
        if options.loss == 'ce':
            if kwargs:
                raise TypeError(f'loss ce has no option {next(iter(kwargs))!r}')
            # torch's own takes hard and soft targets and gives per-sample values, which timm's variants do not
            return nn.CrossEntropyLoss()
        if options.loss == 'jsd' and splits:
            return SplitLoss(splits, options.smoothing, **kwargs)
        return timm.loss.create_classification_loss(
            options.loss, smoothing=options.smoothing, soft_targets=soft_targets, **kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(str(e)) from e


def scaled_lr(schedule: ScheduleOptions, options: OptimizerOptions, images_per_step: int) -> float:
    """``--lr``, or ``--lr-base`` scaled to the global batch as in timm's script (square root for adaptive ones)."""
    if schedule.lr is not None:
        return schedule.lr
    base = str(options.opt_kwargs.get('base', options.opt)).lower()
    scale = schedule.lr_base_scale or ('sqrt' if any(o in base for o in ('ada', 'lamb', 'lion')) else 'linear')
    ratio = images_per_step / schedule.lr_base_size
    return schedule.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)


def build_optimizer(
        options: OptimizerOptions,
        gkp: GKPOptions,
        model: nn.Module,
        distribution: ClassDistribution,
        lr: float,
) -> torch.optim.Optimizer:
    """timm's factory; methods that know classes get the counts, and GKP decides the number of groups."""
    kwargs = dict(options.opt_kwargs)
    if options.opt_eps is not None:
        kwargs['eps'] = options.opt_eps
    if options.opt_betas is not None:
        kwargs['betas'] = tuple(options.opt_betas)
    if options.method in OPTIMIZERS and 'class_counts' in OPTIMIZERS.info(options.method).needs:
        kwargs['class_counts'] = distribution.counts
    if gkp.gkp:
        kwargs.setdefault('num_groups', gkp.gkp_kwargs.get('num_groups', 4))
    layer_decay: dict[str, Any] = {} if options.layer_decay is None else {
        'layer_decay': options.layer_decay, 'layer_decay_min_scale': options.layer_decay_min_scale,
        'layer_decay_no_opt_scale': options.layer_decay_no_opt_scale}
    try:
        return create_optimizer_v2(
            model, opt=options.opt, lr=lr, weight_decay=options.weight_decay, momentum=options.momentum,
            filter_bias_and_bn=options.filter_bias_and_bn, **layer_decay, **kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'optimizer {options.opt!r}: {e}') from e


def build_scheduler(
        options: ScheduleOptions,
        optimizer: torch.optim.Optimizer,
        updates_per_epoch: int,
        seed: int = 0,
) -> tuple[Any, int]:
    """A timm scheduler and the number of epochs, cooldown included; ``seed`` is that of ``--lr-noise``."""
    if options.epochs == 0:  # a second stage on a given checkpoint
        return create_scheduler_v2(optimizer, sched='constant', num_epochs=1)[0], 0
    kwargs = scheduler_kwargs(options, decreasing_metric=False) | {'noise_seed': seed}
    if options.sched == 'none':
        kwargs |= {'sched': 'constant', 'warmup_epochs': 0}
    try:
        return create_scheduler_v2(optimizer, **kwargs, updates_per_epoch=updates_per_epoch)
    except (AssertionError, ValueError, AttributeError) as e:
        raise ConfigError(f'schedule {options.sched!r}: {e}') from e


def initial_share(options: ModelOptions, updates: int) -> float:
    """Share of the initial weights in a moving average of the asked decay after so many updates."""
    return options.model_ema_decay ** max(updates - 1, 0)


def build_ema(options: ModelOptions, model: nn.Module, updates: int) -> ModelEmaV3 | None:
    """timm's moving average of the weights; it warms up by itself where the run is too short for its decay.

    A run is too short if over 1% of the average would still be initial weights after the last update. For a decay of
    0.9998 these are fewer than 23,000 updates. Update t then has the decay ``min(decay, 1 - (1 + t) ** (-2 / 3))``,
    timm's warm-up, so the initial weights vanish. A longer run keeps the decay as it is asked for.

    Args:
        options: Decay, and whether there is an average.
        model: On its device, not yet wrapped.
        updates: Number of updates of the whole run.
    """
    if not options.model_ema:
        return None
    too_short = initial_share(options, updates) > EMA_INITIAL_SHARE
    ema = ModelEmaV3(model, decay=options.model_ema_decay, use_warmup=options.model_ema_warmup or too_short)
    for average, parameter in zip(ema.module.parameters(), model.parameters()):
        if not parameter.requires_grad:
            average.data = parameter.data  # a frozen weight is its own average and needs no second copy
    return ema


class EpochSchedule(Callback):
    """Tells an object the epoch by its ``set_epoch``; the object's own state follows from the epoch."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def on_epoch_start(self, trainer: Any, epoch: int) -> None:
        self.target.set_epoch(epoch)


def build_gkp(
        options: GKPOptions, seed: int, loader: Any, distribution: ClassDistribution, splits: dict[str, Tensor]) -> Any:
    """The callback of ``--gkp``; ``loader`` gives the images that tell the quality of a class."""
    from ..gkp import GKP
    kwargs = {'seed': seed, **options.gkp_kwargs}
    try:
        return call_factory(MethodInfo('gkp', GKP), 'method', distribution, loader, splits=splits, **kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--gkp-kwargs: {e}') from e


def build_drw(options: LossOptions, criterion: nn.Module, distribution: ClassDistribution) -> tuple[Callback, ...]:
    """The callback of ``--drw-epoch``, if it is given."""
    if options.drw_epoch is None:
        return ()
    try:
        return (EpochSchedule(DeferredReweighting(
            criterion, distribution.counts, options.drw_epoch, options.drw_beta, rule=options.drw_rule,
            power=options.drw_power)),)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--drw-epoch: {e}') from e

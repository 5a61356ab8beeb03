"""Model, loss, optimizer, schedule and augmentation of a run, from its options through timm's factories."""

from argparse import Namespace
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
from .._timm_hooks import list_networks, optimizer_names
from .._validate import nearest_names
from ..class_distribution import ClassDistribution
from ..losses import create_loss
from ..losses._factory import TIMM_LOSS_NAMES
from ..losses.drw import DeferredReweighting
from ..models.cosine_classifier import use_cosine_classifier
from ..samplers import list_samplers
from .config import ConfigError, one_line
from .trainer import Callback

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'plateau', 'wsd', 'rsqrt', 'constant', 'none')
COSINE_SCALE = 16.0  # of the classifier, for losses that bring no scale of their own


def check_names(args: Namespace) -> None:
    """Raise a ConfigError, with the nearest names, for a model, loss, optimizer or sampler that nobody registered."""
    model = args.model
    if ':' not in model and not timm.is_model(model):
        raise ConfigError(f'unknown model {model!r}. {nearest_names(model, timm.list_models())}')
    if args.loss not in LOSSES and args.loss not in TIMM_LOSS_NAMES:
        known = LOSSES.names() + list(TIMM_LOSS_NAMES)
        raise ConfigError(f'unknown loss {args.loss!r}. {nearest_names(args.loss, known)}')
    # timm looks up what follows the last underscore, whatever stands before it: sse_sam would be sam
    if args.opt.lower().removeprefix('lookahead_') not in optimizer_names():
        nearest = nearest_names(args.opt.replace('_', ''), optimizer_names())
        raise ConfigError(f'unknown optimizer {args.opt!r}. {nearest}')
    if args.sched not in SCHEDULES:
        raise ConfigError(f'unknown schedule {args.sched!r}. {nearest_names(args.sched, SCHEDULES)}')
    if args.sampler not in list_samplers():
        raise ConfigError(f'unknown sampler {args.sampler!r}. {nearest_names(args.sampler, list_samplers())}')
    if args.torchcompile:
        known = torch.compiler.list_backends()
        if args.torchcompile not in torch.compiler.list_backends(exclude_tags=None):  # those for tests of torch too
            raise ConfigError(
                f'unknown --torchcompile {args.torchcompile!r}. {nearest_names(args.torchcompile, known)}')
    if args.stage2:
        from ..two_stage import list_stage2
        if args.stage2 not in list_stage2():
            raise ConfigError(f'unknown second stage {args.stage2!r}. {nearest_names(args.stage2, list_stage2())}')
        if args.stage2_loss and args.stage2_loss not in LOSSES and args.stage2_loss not in TIMM_LOSS_NAMES:
            known = LOSSES.names() + list(TIMM_LOSS_NAMES)
            raise ConfigError(f'unknown loss {args.stage2_loss!r}. {nearest_names(args.stage2_loss, known)}')
        if args.stage2_sampler and args.stage2_sampler not in list_samplers():
            raise ConfigError(
                f'unknown sampler {args.stage2_sampler!r}. {nearest_names(args.stage2_sampler, list_samplers())}')
    if (mixes(args) or args.smoothing > 0) and args.loss in LOSSES and not LOSSES.info(args.loss).soft_targets:
        raise ConfigError(
            f'loss {args.loss!r} does not support soft targets, which --mixup, --cutmix and --smoothing make; '
            f'switch them off or use one of {[n for n in LOSSES.names() if LOSSES.info(n).soft_targets]}')


def build_model(args: Namespace, num_classes: int) -> tuple[nn.Module, dict[str, Any]]:
    """The model, and the arguments that rebuild it from a saved folder."""
    if args.initial_checkpoint and not Path(args.initial_checkpoint).is_file():
        raise ConfigError(f'--initial-checkpoint {args.initial_checkpoint}: there is no such file')
    further = {'global_pool': args.gp, 'bn_eps': args.bn_eps}
    rebuild = {k: v for k, v in further.items() if v is not None} | args.model_kwargs
    size = {'input_size': args.input_size, 'img_size': args.img_size, 'in_chans': args.in_chans}
    doing = 'cannot be created'
    try:
        # as in timm's script: channels and, where the network has a fixed size, the size of the images
        options = timm.models.resolve_model_input_args(args.model, size, **rebuild)
        if wants_cosine(args) and options['model_name'] in list_networks():
            rebuild.setdefault('cosine_scale', cosine_scale(args))
            options['cosine_scale'] = rebuild['cosine_scale']  # also over that of a saved folder
        model = timm.create_model(**options | {
            'pretrained': args.pretrained, 'num_classes': num_classes, 'drop_rate': args.drop,
            'drop_path_rate': args.drop_path, 'drop_block_rate': args.drop_block,
            'checkpoint_path': args.initial_checkpoint})
        if wants_cosine(args) and 'cosine_scale' not in options:
            doing = 'cannot take the cosine classifier that the loss or --cosine-classifier asks for'
            use_cosine_classifier(model, scale=cosine_scale(args))
        doing = 'cannot take --head-init-scale, --head-init-bias or --bn-momentum'
        initialize(model, args.head_init_scale, args.head_init_bias, args.bn_momentum)
        if args.grad_checkpointing:
            doing = 'does not support --grad-checkpointing'
            model.set_grad_checkpointing(True)
    except TypeError as e:
        raise ConfigError(f'model {args.model!r} does not take these options: {one_line(e)}') from e
    except (AssertionError, AttributeError, KeyError, OSError, RuntimeError, ValueError, SafetensorError) as e:
        sources = [o for o in ('--pretrained', '--initial-checkpoint') if getattr(args, o[2:].replace('-', '_'))]
        using = f' with {" and ".join(sources)}' if sources and 'created' in doing else ''
        raise ConfigError(f'model {args.model!r} {doing}{using}: {one_line(e)}') from e
    return model, rebuild


def initialize(
        model: nn.Module, head_scale: float | None, head_bias: float | None, bn_momentum: float | None) -> None:
    """Change the initial classifier and BatchNorm's momentum, where they are given; as in timm's script.

    Raises:
        ValueError: If the model has no such layer.
    """
    if head_scale is not None or head_bias is not None:
        head = find_classifier(model)
        if not isinstance(head, nn.Linear):
            raise ValueError(f'its classifier must be one linear layer, got {kind_of_classifier(model)}')
        with torch.no_grad():
            if head_scale is not None:
                for parameter in head.parameters():
                    parameter.mul_(head_scale)
            if head_bias is not None:
                if head.bias is None:
                    raise ValueError('its classifier has no bias')
                head.bias.fill_(head_bias)
    if bn_momentum is not None:
        layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
        if not layers:
            raise ValueError('it has no BatchNorm layer')
        for layer in layers:
            layer.momentum = bn_momentum


def training_model(args: Namespace, model: nn.Module) -> nn.Module:
    """The model with the heads that the loss needs in training only."""
    wrap_model = LOSSES.trait(args.loss, 'wrap_model', None)
    try:
        return model if wrap_model is None else wrap_model(model)
    except ValueError as e:
        raise ConfigError(f'loss {args.loss}: {e}') from e


def wants_cosine(args: Namespace) -> bool:
    """Whether the classifier is normalised: as asked, else where the loss is defined on cosines (LDAM, GCL)."""
    if args.cosine_classifier is not None:
        return args.cosine_classifier
    return _loss_on_cosines(args)


def cosine_scale(args: Namespace) -> float:
    return 1.0 if _loss_on_cosines(args) else COSINE_SCALE


def _loss_on_cosines(args: Namespace) -> bool:
    return LOSSES.trait(args.loss, 'cosine_classifier', False)


def data_config(args: Namespace, model: nn.Module) -> dict[str, Any]:
    """Input size, mean, deviation, interpolation and crop of the model, less what the options override."""
    names = ('in_chans', 'input_size', 'img_size', 'crop_pct', 'mean', 'std', 'interpolation')
    options = {k: getattr(args, k) for k in names}
    try:
        config = resolve_input_data_config(model, {k: v for k, v in options.items() if v})
    except ValueError as e:
        raise ConfigError(f'model {args.model!r}: {e}') from e
    if config['input_size'][0] not in (1, 3):
        raise ConfigError(
            f'images are read with 1 (grey) or 3 (RGB) channels; the model is to take {config["input_size"][0]} '
            f'(--input-size, --model-kwargs in_chans)')
    return config


class LabelSmoothing:
    """Smoothed soft targets, for losses that have no option of their own."""

    def __init__(self, num_classes: int, smoothing: float) -> None:
        self.num_classes = num_classes
        self.smoothing = smoothing

    def __call__(self, input: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        return input, mixup_target(label, self.num_classes, lam=1.0, smoothing=self.smoothing)


def mixes(args: Namespace) -> bool:
    """Mixup or CutMix is on."""
    return args.mixup > 0 or args.cutmix > 0 or args.cutmix_minmax is not None


def build_mixing(args: Namespace, num_classes: int) -> Mixup | LabelSmoothing | None:
    """What turns (input, label) into mixed inputs and soft targets, or None."""
    if mixes(args):
        return Mixup(
            mixup_alpha=args.mixup, cutmix_alpha=args.cutmix, cutmix_minmax=args.cutmix_minmax, prob=args.mixup_prob,
            switch_prob=args.mixup_switch_prob, mode=args.mixup_mode, label_smoothing=args.smoothing,
            num_classes=num_classes)
    if args.smoothing > 0 and (args.loss in LOSSES or args.loss == 'ce'):
        return LabelSmoothing(num_classes, args.smoothing)
    return None


def build_loss(args: Namespace, distribution: ClassDistribution) -> nn.Module:
    """The training loss; class counts come from the training images that are really used."""
    kwargs = dict(args.loss_kwargs)
    try:
        if args.loss in LOSSES:
            loss = create_loss(args.loss, class_counts=distribution.counts, **kwargs)
        elif args.loss == 'ce':
            if kwargs:
                raise TypeError(f'loss ce has no option {next(iter(kwargs))!r}')
            # torch's own takes hard and soft targets and gives per-sample values, which timm's variants do not
            loss = nn.CrossEntropyLoss()
        else:
            loss = timm.loss.create_classification_loss(
                args.loss, smoothing=args.smoothing, soft_targets=mixes(args), **kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(str(e)) from e
    return loss


def scaled_lr(args: Namespace, num_processes: int) -> float:
    """``--lr``, or ``--lr-base`` scaled to the global batch as in timm's script (square root for adaptive ones)."""
    if args.lr is not None:
        return args.lr
    global_batch = args.batch_size * num_processes * args.grad_accum_steps
    base = str(args.opt_kwargs.get('base', args.opt)).lower()
    scale = args.lr_base_scale or ('sqrt' if any(o in base for o in ('ada', 'lamb', 'lion')) else 'linear')
    ratio = global_batch / args.lr_base_size
    return args.lr_base * (ratio ** 0.5 if scale == 'sqrt' else ratio)


def build_optimizer(args: Namespace, model: nn.Module, distribution: ClassDistribution, lr: float):
    """timm's factory; methods that know classes get the counts."""
    kwargs = dict(args.opt_kwargs)
    if args.opt_eps is not None:
        kwargs['eps'] = args.opt_eps
    if args.opt_betas is not None:
        kwargs['betas'] = tuple(args.opt_betas)
    name = args.opt.lower().split('_')[-1]
    if name in OPTIMIZERS and 'class_counts' in OPTIMIZERS.info(name).needs:
        kwargs['class_counts'] = distribution.counts
    if args.gkp:
        kwargs.setdefault('num_groups', args.gkp_kwargs.get('num_groups', 4))
    layer_decay = {} if args.layer_decay is None else {
        'layer_decay': args.layer_decay, 'layer_decay_min_scale': args.layer_decay_min_scale,
        'layer_decay_no_opt_scale': args.layer_decay_no_opt_scale}
    try:
        return create_optimizer_v2(
            model, opt=args.opt, lr=lr, weight_decay=args.weight_decay, momentum=args.momentum,
            filter_bias_and_bn=args.filter_bias_and_bn, **layer_decay, **kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'optimizer {args.opt!r}: {e}') from e


def build_scheduler(args: Namespace, optimizer: torch.optim.Optimizer, updates_per_epoch: int) -> tuple[Any, int]:
    """A timm scheduler and the number of epochs, cooldown included."""
    kwargs = scheduler_kwargs(args, decreasing_metric=False)
    if args.sched == 'none':
        kwargs |= {'sched': 'constant', 'warmup_epochs': 0}
    if args.epochs == 0:  # a second stage on a given checkpoint
        return create_scheduler_v2(optimizer, sched='constant', num_epochs=1)[0], 0
    try:
        scheduler, epochs = create_scheduler_v2(optimizer, **kwargs, updates_per_epoch=updates_per_epoch)
    except (AssertionError, ValueError, AttributeError) as e:
        raise ConfigError(f'schedule {args.sched!r}: {e}') from e
    return scheduler, epochs


EMA_INITIAL_SHARE = 0.01


def initial_share(args: Namespace, updates: int) -> float:
    """Share of the initial weights in a moving average of the asked decay after so many updates."""
    return args.model_ema_decay ** max(updates - 1, 0)


def build_ema(args: Namespace, model: nn.Module, updates: int) -> ModelEmaV3 | None:
    """timm's moving average of the weights; it warms up by itself where the run is too short for its decay.

    Too short: over 1% of the average would still be initial weights after the last update, e.g. fewer than 23,000
    updates of a decay of 0.9998. The decay of update t is then ``min(decay, 1 - (1 + t) ** (-2 / 3))``, timm's warm-up,
    under which the initial weights vanish. A longer run keeps the decay as it is asked for.

    Args:
        args: The options.
        model: On its device, not yet wrapped.
        updates: Of the whole run.
    """
    if not args.model_ema:
        return None
    too_short = initial_share(args, updates) > EMA_INITIAL_SHARE
    return ModelEmaV3(model, decay=args.model_ema_decay, use_warmup=args.model_ema_warmup or too_short)


class EpochSchedule(Callback):
    """Tells an object the epoch by its ``set_epoch``; the object's own state follows from the epoch."""

    def __init__(self, target: Any) -> None:
        self.target = target

    def on_epoch_start(self, trainer: Any, epoch: int) -> None:
        self.target.set_epoch(epoch)


def build_gkp(args: Namespace, loader: Any, distribution: ClassDistribution, splits: dict[str, Tensor]) -> Any:
    """The callback of ``--gkp``."""
    from ..gkp import GKP
    if args.opt.lower().split('_')[-1] != 'gsa':
        raise ConfigError("--gkp needs --opt gsa (with --opt-kwargs Z=0 the loss is not perturbed: GKP alone)")
    options = {'seed': args.seed, **args.gkp_kwargs}
    try:
        return call_factory(MethodInfo('gkp', GKP), 'method', distribution, loader, splits=splits, **options)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--gkp-kwargs: {e}') from e


def build_callbacks(args: Namespace, criterion: nn.Module, distribution: ClassDistribution) -> tuple[Callback, ...]:
    """What the chosen methods do beside the steps."""
    callbacks: list[Callback] = []
    if args.drw_epoch is not None:
        try:
            callbacks.append(EpochSchedule(
                DeferredReweighting(criterion, distribution.counts, args.drw_epoch, beta=args.drw_beta)))
        except (TypeError, ValueError) as e:
            raise ConfigError(f'--drw-epoch: {e}') from e
    return tuple(callbacks)

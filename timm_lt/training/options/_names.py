"""Names of methods in the options: each must be registered, and the message names the nearest."""

from collections.abc import Callable, Iterable

import timm
import torch

from ..._registry import LOSSES
from ..._timm_hooks import optimizer_names
from ..._validate import nearest_names
from ...data import list_mixings
from ...finetune import create_method
from ...losses._factory import TIMM_LOSS_NAMES
from ...samplers import list_samplers
from ...two_stage import list_second_stages
from ..errors import ConfigError
from ._composed import Options
from ._finetune import FinetuneOptions

SCHEDULES = ('cosine', 'tanh', 'step', 'multistep', 'poly', 'plateau', 'wsd', 'rsqrt', 'constant', 'none')


def _losses() -> list[str]:
    return LOSSES.names() + list(TIMM_LOSS_NAMES)


# option, what it names, the names; optimizers are looked up apart, because wrappers are part of their names
NAMES: tuple[tuple[str, str, Callable[[], Iterable[str]]], ...] = (
    ('loss', 'loss', _losses), ('stage2_loss', 'loss', _losses),
    ('sched', 'schedule', lambda: SCHEDULES), ('mix', 'mixing', list_mixings),
    ('sampler', 'sampler', list_samplers), ('stage2_sampler', 'sampler', list_samplers),
    ('stage2', 'second stage', list_second_stages),
)


def check_names(options: Options) -> None:
    """Raise a ConfigError, with the nearest names, for a method that is not registered."""
    values = options.flat()
    _check_model(options.model.model)
    _check_optimizer(options.optimizer.opt)
    _check_finetuning(options.finetune)
    for name, kind, known in NAMES:
        if values[name] and values[name] not in known():
            raise ConfigError(f'unknown {kind} {values[name]!r}. {nearest_names(values[name], known())}')
    backend = options.model.torchcompile
    # also those that torch has for its own tests
    if backend and backend not in torch.compiler.list_backends(exclude_tags=None):
        nearest = nearest_names(backend, torch.compiler.list_backends())
        raise ConfigError(f'unknown --torchcompile {backend!r}. {nearest}')
    _check_soft_targets(options)


def _check_model(model: str | None) -> None:
    if model is not None and ':' not in model and not timm.is_model(model):
        raise ConfigError(f'unknown model {model!r}. {nearest_names(model, timm.list_models())}')


def _check_finetuning(options: FinetuneOptions) -> None:
    if options.finetune is not None:
        try:
            create_method(options.finetune, **options.finetune_kwargs)
        except (TypeError, ValueError) as e:
            raise ConfigError(f'--finetune: {e}') from e


def _check_optimizer(opt: str) -> None:
    # timm looks up what follows the last underscore, whatever comes before it: sse_sam would be sam
    if opt.lower().removeprefix('lookahead_') not in optimizer_names():
        nearest = nearest_names(opt.replace('_', ''), optimizer_names())
        raise ConfigError(f'unknown optimizer {opt!r}. {nearest}')


def _check_soft_targets(options: Options) -> None:
    loss = options.loss.loss
    soft = options.augmentation.mixes or options.loss.smoothing > 0
    if soft and loss in LOSSES and not LOSSES.info(loss).soft_targets:
        raise ConfigError(
            f'loss {loss!r} does not support soft targets, which --mix, --mixup, --cutmix and --smoothing make; '
            f'switch them off or use one of {[n for n in LOSSES.names() if LOSSES.info(n).soft_targets]}')

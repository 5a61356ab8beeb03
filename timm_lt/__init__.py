"""timm_lt makes timm learn from long-tailed data. ``import timm_lt`` registers into timm's own factories."""

import importlib
from typing import TYPE_CHECKING, Any

from ._threads import wait_passively

wait_passively()  # before anything loads torch

from . import losses, models, optim, samplers  # noqa: I001  each registers its methods
from ._timm_hooks import list_networks, register, unregister
from ._version import __version__
from .class_distribution import ClassDistribution
from .losses import create_loss, list_losses
from .samplers import create_sampler, list_samplers

if TYPE_CHECKING:
    from . import cli as cli
    from . import data as data
    from . import evaluate as evaluate
    from . import export as export
    from . import finetune as finetune
    from . import gkp as gkp
    from . import hub as hub
    from . import posthoc as posthoc
    from . import predict as predict
    from . import training as training
    from . import two_stage as two_stage
    from .data import long_tailed_subset as long_tailed_subset

_LAZY_MODULES = (
    'cli', 'data', 'evaluate', 'export', 'finetune', 'gkp', 'hub', 'posthoc', 'predict', 'training', 'two_stage')
_LAZY_NAMES = {'long_tailed_subset': 'data'}

__all__ = [
    'ClassDistribution', '__version__', 'cli', 'create_loss', 'create_sampler', 'data', 'evaluate', 'export',
    'finetune', 'gkp', 'hub', 'list_losses', 'list_networks', 'list_optimizers', 'list_samplers', 'long_tailed_subset',
    'losses', 'models', 'optim', 'posthoc', 'predict', 'register', 'samplers', 'training', 'two_stage', 'unregister',
]


def list_optimizers(filter: str = '') -> list[str]:
    """Names of the optimizers that this package adds to timm's, sorted."""
    from ._registry import OPTIMIZERS
    return OPTIMIZERS.names(filter)


if not TYPE_CHECKING:  # a type checker must not take every name for one of this package
    def __getattr__(name: str) -> Any:
        # parts that need more than timm and torch are imported when first used
        if name in _LAZY_MODULES:
            return importlib.import_module(f'{__name__}.{name}')
        if name in _LAZY_NAMES:
            return getattr(importlib.import_module(f'{__name__}.{_LAZY_NAMES[name]}'), name)
        raise AttributeError(f'module {__name__!r} has no attribute {name!r}')


def __dir__() -> list[str]:
    return sorted(__all__)


register()

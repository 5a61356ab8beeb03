"""Registration into timm: the only file that touches timm's private names."""

import functools
from collections.abc import Callable
from typing import Any, cast

try:
    import timm.data
    import timm.data.loader
    import timm.loss
    import timm.models
    from timm.loss import _loss_factory
    from timm.models import _registry as _model_registry
    from timm.optim import _optim_factory
    from timm.optim._optim_factory import OptimInfo, default_registry
    _ = (
        default_registry._optimizers,
        _model_registry._model_entrypoints,
        _model_registry._clear_model_entries,
        _loss_factory.create_classification_loss,
        timm.data.loader.create_loader,
    )
except (ImportError, AttributeError) as e:  # pragma: no cover - depends on the installed timm
    raise ImportError(
        f'timm_lt supports timm >= 1.0.31; the installed timm lacks something that it registers into: {e}. '
        f'Install a supported version: pip install "timm>=1.0.31,<2"') from e

from torch.optim import Optimizer

from ._registry import OPTIMIZERS, MethodInfo

_originals: dict[tuple[Any, str], Any] = {}
_added: set[tuple[str, str]] = set()  # (kind, name): what this package put there, and takes back
_networks: list[Callable] = []
_extensions: dict[str, Callable] = {}  # by the name of timm's factory


def register_network(fn: Callable) -> Callable:
    """Decorator of a timm model entry point of this package (its module defines ``default_cfgs``)."""
    _networks.append(fn)
    return fn


def extends_timm(factory: str) -> Callable[[Callable], Callable]:
    """Decorator of the function that takes the place of a factory of timm; its first argument is timm's own.

    Args:
        factory: Name of timm's factory.
    """

    def add(extension: Callable) -> Callable:
        _extensions[factory] = extension
        return extension

    return add


def list_networks() -> list[str]:
    """Names of the networks that this package registers into timm, sorted."""
    return sorted(fn.__name__ for fn in _networks)


def is_registered() -> bool:
    return bool(_originals)


def register() -> None:
    """Add networks, optimizers, losses and samplers to timm's factories; a second call changes nothing."""
    if is_registered():
        return
    for fn in _networks:
        if fn.__name__ not in _model_registry._model_entrypoints:
            timm.models.register_model(fn)
            _added.add(('model', fn.__name__))
    for info in OPTIMIZERS.infos():
        _register_optimizer(info)
    OPTIMIZERS.on_register(_register_optimizer)
    _patch('create_classification_loss', (timm.loss, _loss_factory))
    _patch('create_loader', (timm.data, timm.data.loader))


def unregister() -> None:
    """Take back everything that :func:`register` did."""
    for (module, name), original in _originals.items():
        setattr(module, name, original)
    _originals.clear()
    OPTIMIZERS.remove_listener(_register_optimizer)
    for kind, name in _added:
        if kind == 'optimizer':
            default_registry._optimizers.pop(name, None)
        else:
            _model_registry._clear_model_entries(name)
            _model_registry._model_entrypoints.pop(name, None)
    _added.clear()


def _register_optimizer(info: MethodInfo) -> None:
    if '_' in info.name:
        raise ValueError(f'optimizer name {info.name!r}: timm cuts names at the underscore; use none')
    if info.name not in default_registry._optimizers:
        default_registry.register(OptimInfo(
            name=info.name, opt_class=cast(type[Optimizer], info.factory), description=info.description,
            has_eps=True, has_momentum=True, has_betas=True))
        _added.add(('optimizer', info.name))


def _patch(name: str, modules: tuple) -> None:
    original = getattr(modules[-1], name)
    extend = _extensions[name]

    @functools.wraps(original)
    def extended(*args: Any, **kwargs: Any) -> Any:
        return extend(original, *args, **kwargs)

    for module in modules:
        _originals[module, name] = getattr(module, name)
        setattr(module, name, extended)


def optimizer_names() -> set[str]:
    """Names of every optimizer that timm knows, ours included."""
    return set(default_registry._optimizers)


def optimizer_class(name: str) -> type:
    """The class of a registered optimizer."""
    return cast(type, default_registry.get_optimizer_class(name, bind_defaults=False))


def create_base_optimizer(params: Any, name: str, **kwargs: Any) -> Optimizer:
    """A registered optimizer built by timm's own factory, which drops the options that it lacks."""
    return _optim_factory.create_optimizer_v2(params, name, **kwargs)



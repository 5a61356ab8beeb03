"""Registries of methods. A method is one file and one decorator line; its subpackage imports the file."""

import importlib
import inspect
import pkgutil
import sys
from collections.abc import Callable
from dataclasses import dataclass
from fnmatch import fnmatch
from typing import TYPE_CHECKING, Any

from ._moved import renamed
from ._validate import nearest_names


@dataclass(frozen=True)
class MethodInfo:
    """One registered method.

    Attributes:
        name: Registry name, lower-case.
        factory: Class or function that builds it.
        paper: Citation, "First author et al., VENUE YEAR".
        description: One line.
        needs: What the caller must hand over, e.g. ``('class_counts',)``.
        soft_targets: Losses only: accepts soft (B, C) targets (Mixup, CutMix, label smoothing).
    """
    name: str
    factory: Callable[..., Any]
    paper: str = ''
    description: str = ''
    needs: tuple[str, ...] = ()
    soft_targets: bool = True


class Registry:
    """Names to methods of one kind ('loss', 'sampler', 'optimizer', ...)."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._infos: dict[str, MethodInfo] = {}
        self._listeners: list[Callable[[MethodInfo], None]] = []

    def register(
            self,
            name: str,
            *,
            paper: str = '',
            description: str = '',
            needs: tuple[str, ...] = (),
            soft_targets: bool = True,
    ) -> Callable:
        """Decorator: adds the class or function under ``name`` and to its module's ``__all__``.

        Raises:
            ValueError: If the name is taken or not lower-case.
        """
        if name != name.lower():
            raise ValueError(f'{self.kind} name must be lower-case, got {name!r}')

        def add(factory: Callable) -> Callable:
            known = self._infos.get(name)
            same = known and (known.factory.__module__, known.factory.__qualname__) == (
                factory.__module__, factory.__qualname__)
            if known and not same:
                raise ValueError(
                    f'{self.kind} {name!r} is registered already by {known.factory.__module__}; choose another name')
            text = description or (inspect.getdoc(factory) or name).splitlines()[0]
            info = MethodInfo(name, factory, paper, text, tuple(needs), soft_targets)
            self._infos[name] = info
            module = sys.modules.get(factory.__module__)
            if module is not None:
                exported = module.__dict__.setdefault('__all__', [])
                if factory.__name__ not in exported:
                    exported.append(factory.__name__)
            for listener in self._listeners:
                listener(info)
            return factory

        return add

    def on_register(self, listener: Callable[[MethodInfo], None]) -> None:
        """Call ``listener`` for each method registered from now on."""
        if listener not in self._listeners:
            self._listeners.append(listener)

    def remove_listener(self, listener: Callable[[MethodInfo], None]) -> None:
        if listener in self._listeners:
            self._listeners.remove(listener)

    def __contains__(self, name: object) -> bool:
        return name in self._infos

    def infos(self) -> list[MethodInfo]:
        return [self._infos[name] for name in sorted(self._infos)]

    def names(self, filter: str = '') -> list[str]:
        """Sorted names, optionally those that match a wildcard such as ``'*softmax*'``."""
        return [name for name in sorted(self._infos) if not filter or fnmatch(name, filter)]

    def trait(self, name: str, trait: str, default: Any) -> Any:
        """Attribute that the class of the method ``name`` declares; ``default`` if it declares none."""
        return getattr(self._infos[name].factory, trait, default) if name in self._infos else default

    def info(self, name: str, also: tuple[str, ...] = ()) -> MethodInfo:
        """The record of ``name``; ``also`` names further valid names for the message.

        Raises:
            ValueError: If the name is unknown, with the nearest names.
        """
        if name not in self._infos:
            raise ValueError(f'Unknown {self.kind} {name!r}. {nearest_names(name, [*self._infos, *also])}')
        return self._infos[name]


LOSSES = Registry('loss')
SAMPLERS = Registry('sampler')
OPTIMIZERS = Registry('optimizer')
SECOND_STAGES = Registry('second stage')
READERS = Registry('dataset')
POSTHOC = Registry('post-hoc correction')
FINETUNING = Registry('fine-tuning method')
MIXINGS = Registry('mixing')

register_loss = LOSSES.register
register_sampler = SAMPLERS.register
register_optimizer = OPTIMIZERS.register
register_second_stage = SECOND_STAGES.register
register_reader = READERS.register
register_posthoc = POSTHOC.register
register_finetuning = FINETUNING.register
register_mixing = MIXINGS.register

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, register_stage2='register_second_stage', STAGE2='SECOND_STAGES')


def call_factory(info: MethodInfo, kind: str, *args: Any, **kwargs: Any) -> Any:
    """Build a method; a TypeError names an option that its constructor lacks or that is missing."""
    parameters, takes_any = _constructor_parameters(info.factory)
    for key in kwargs:
        if key not in parameters and not takes_any:
            known = ', '.join(repr(n) for n in parameters)
            raise TypeError(f'{kind} {info.name!r} has no option {key!r}; its options are {known}')
    for name, p in parameters.items():
        if p.kind is p.KEYWORD_ONLY and p.default is p.empty and name not in kwargs:
            raise TypeError(f'{kind} {info.name!r} needs {name}: pass {name}=..., see {info.factory.__qualname__}')
    return info.factory(*args, **kwargs)


def _constructor_parameters(factory: Callable) -> tuple[dict[str, inspect.Parameter], bool]:
    """Parameters by name, those that ``**options`` hands to a base class included, and whether any name is taken."""
    functions: list[Callable] = [factory]
    if inspect.isclass(factory):
        functions = [cls.__dict__['__init__'] for cls in factory.__mro__ if '__init__' in cls.__dict__]
    parameters: dict[str, inspect.Parameter] = {}
    for function in functions:
        own = inspect.signature(function).parameters
        named = {n: p for n, p in own.items() if n != 'self' and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
        parameters = {**named, **parameters}
        if not any(p.kind is p.VAR_KEYWORD for p in own.values()):
            return parameters, False
    return parameters, True


def import_siblings(package: str) -> list[str]:
    """Import every module of ``package`` whose name has no leading underscore and re-export its ``__all__``."""
    package_module = sys.modules[package]
    exported: list[str] = []
    for module_info in pkgutil.iter_modules(package_module.__path__):
        if module_info.name.startswith('_'):
            continue
        module = importlib.import_module(f'{package}.{module_info.name}')
        for name in getattr(module, '__all__', []):
            setattr(package_module, name, getattr(module, name))
            exported.append(name)
    return exported

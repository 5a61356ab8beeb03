"""Old places and old spellings of public names: they stay importable, with a deprecation message."""

import importlib
import warnings
from collections.abc import Callable
from typing import Any


def moved_to(old: str, new: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module whose names have moved.

    Args:
        old: Name of the module.
        new: Name of the module that holds them now.
    """

    def get(name: str) -> Any:
        if name.startswith('__') or not hasattr(importlib.import_module(new), name):
            raise AttributeError(f'module {old!r} has no attribute {name!r}')
        warnings.warn(f'{old}.{name} has moved; import it from {new}', DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(new), name)

    return get


def renamed(module: str, **new_names: str) -> Callable[[str], Any]:
    """The ``__getattr__`` of a module that has renamed some of its names.

    Args:
        module: Name of the module.
        new_names: Old name to new name.
    """

    def get(name: str) -> Any:
        if name not in new_names:
            raise AttributeError(f'module {module!r} has no attribute {name!r}')
        warnings.warn(f'{module}.{name} is now called {new_names[name]}', DeprecationWarning, stacklevel=2)
        return getattr(importlib.import_module(module), new_names[name])

    return get

"""Old places of public names: they stay importable, with a deprecation message."""

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

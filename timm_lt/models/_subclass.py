"""Subclasses of timm's networks that are made while the program runs, and can be copied and pickled."""

import functools
from typing import Any

import torch.nn as nn


class NetworkMixin:
    """Base of what a subclass puts before the class of a timm network."""

    network_class: type

    def __reduce_ex__(self, protocol: Any) -> tuple:
        state = super().__reduce_ex__(protocol)[2]
        mixin = type(self).__mro__[1]
        return _empty_network, (mixin, self.network_class), state  # pickle finds a class by name; this one has none


@functools.cache
def subclass(mixin: Any, network_class: Any) -> type:
    """The subclass of ``network_class`` with ``mixin`` before it, always the same one."""
    name = f'{mixin.__name__.strip("_")}{network_class.__name__}'
    return type(name, (mixin, network_class), {'__module__': network_class.__module__, 'network_class': network_class})


def _empty_network(mixin: Any, network_class: Any) -> nn.Module:
    cls: Any = subclass(mixin, network_class)
    return cls.__new__(cls)

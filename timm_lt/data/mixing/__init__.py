"""Mixing of training batches in favour of rare classes, registered by name."""

from typing import TYPE_CHECKING

from ..._registry import import_siblings
from ._base import BatchMixing
from ._factory import create_mixing, list_mixings
from ._pairs import PairedLoader

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .balanced_mixup import BalancedMixup as BalancedMixup
    from .cmo import CMO as CMO
    from .remix import Remix as Remix
    from .unimix import UniMix as UniMix

__all__ = ['BatchMixing', 'PairedLoader', 'create_mixing', 'list_mixings']
__all__ += import_siblings(__name__)

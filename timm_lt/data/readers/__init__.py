"""Readers of datasets, one file each: a folder, lists and tables, digits, Hugging Face sets, torchvision's sets.

A reader is a :class:`DatasetReader` under ``@register_reader(PREFIX)``; ``create_dataset('PREFIX/REST')`` then uses it.
"""

from typing import TYPE_CHECKING

from ..._registry import import_siblings
from ._base import DatasetReader, NamedClassReader

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .digits import DigitsReader as DigitsReader
    from .folder import FolderReader as FolderReader
    from .hfds import HubReader as HubReader
    from .list import ListReader as ListReader
    from .streams import StreamReader as StreamReader
    from .torchvision import TorchvisionReader as TorchvisionReader

__all__ = ['DatasetReader', 'NamedClassReader']
__all__ += import_siblings(__name__)

"""Readers of datasets, one file each: a folder, lists and tables, digits, Hugging Face sets, torchvision's sets.

A reader is a :class:`DatasetReader` under ``@register_reader(PREFIX)``; ``create_dataset('PREFIX/REST')`` then uses it.
"""

from ..._registry import import_siblings
from ._base import DatasetReader

__all__ = ['DatasetReader', *import_siblings(__name__)]

"""Long-tailed subsets, list files, embedded digits, images kept in memory, loaders."""

from .._registry import import_siblings

__all__ = [*import_siblings(__name__)]

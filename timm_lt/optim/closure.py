"""Old place of names that :mod:`timm_lt.optim` holds."""

from .._moved import moved_to

__getattr__ = moved_to(__name__, 'timm_lt.optim')

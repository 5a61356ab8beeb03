"""Old place of names that :mod:`timm_lt.evaluate.metrics` holds."""

from .._moved import moved_to

__getattr__ = moved_to(__name__, 'timm_lt.evaluate.metrics')

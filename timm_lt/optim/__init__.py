"""Sharpness-aware optimizers on top of any optimizer of timm, registered by name."""

from .._registry import import_siblings
from ._engine import SharpnessAware

__all__ = ['SharpnessAware', *import_siblings(__name__)]

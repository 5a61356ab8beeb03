"""Sharpness-aware optimizers on top of any optimizer of timm, registered by name."""

from .._registry import import_siblings

__all__ = [*import_siblings(__name__)]

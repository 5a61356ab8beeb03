"""GSA: the optimizer, and the perturbations of groups as pure functions."""

from .optimizer import GSA

__all__ = ['GSA']

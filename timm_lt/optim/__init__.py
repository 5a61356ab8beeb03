"""Sharpness-aware optimizers on top of any optimizer of timm, registered by name.

A method is one small file or folder here. ``engine`` holds the steps that all methods share, and ``approximate`` the
cheaper passes of ``batchnorm='stacked'`` and ``'exact_ascent'``.
"""

from .._registry import import_siblings
from .engine import BatchClosure, SharpnessAware, StepResult, find_sharpness_aware, optimizer_step, set_epoch

__all__ = [
    'BatchClosure', 'SharpnessAware', 'StepResult', 'find_sharpness_aware', 'optimizer_step', 'set_epoch',
    *import_siblings(__name__),
]

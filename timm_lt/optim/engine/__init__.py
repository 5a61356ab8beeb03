"""The engine of all sharpness-aware methods.

:class:`BatchClosure` holds a batch, :class:`SharpnessAware` a method, and :func:`optimizer_step` takes the step.
"""

from .closure import BatchClosure
from .gradients import Part
from .optimizer import SharpnessAware
from .step import StepResult, find_sharpness_aware, optimizer_step, set_epoch

__all__ = [
    'BatchClosure', 'Part', 'SharpnessAware', 'StepResult', 'find_sharpness_aware', 'optimizer_step', 'set_epoch',
]

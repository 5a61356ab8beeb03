"""The engine of all sharpness-aware methods.

:class:`BatchClosure` holds a batch, :class:`SharpnessAware` a method, and :func:`optimizer_step` takes the step.
"""

from .closure import BatchClosure as BatchClosure
from .gradients import Part as Part
from .gradients import StepGradients as StepGradients
from .optimizer import SharpnessAware as SharpnessAware
from .step import StepResult as StepResult
from .step import find_sharpness_aware as find_sharpness_aware
from .step import optimizer_step as optimizer_step
from .step import set_epoch as set_epoch
from .two_calls import TwoCallForm as TwoCallForm

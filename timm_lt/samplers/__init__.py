"""Samplers that re-balance classes, registered by name."""

from typing import TYPE_CHECKING

from .._registry import import_siblings
from ._base import LongTailSampler, check_not_divided
from ._factory import create_sampler, list_samplers
from ._timm_loader import with_sampler

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .class_balanced import ClassBalancedSampler as ClassBalancedSampler
    from .effective_number import EffectiveNumberSampler as EffectiveNumberSampler
    from .instance_balanced import InstanceBalancedSampler as InstanceBalancedSampler
    from .m_per_class import MPerClassSampler as MPerClassSampler
    from .power import PowerSampler as PowerSampler
    from .progressive import ProgressiveSampler as ProgressiveSampler
    from .repeat_factor import RepeatFactorSampler as RepeatFactorSampler
    from .reverse import ReverseSampler as ReverseSampler
    from .square_root import SquareRootSampler as SquareRootSampler

__all__ = ['LongTailSampler', 'check_not_divided', 'create_sampler', 'list_samplers', 'with_sampler']
__all__ += import_siblings(__name__)

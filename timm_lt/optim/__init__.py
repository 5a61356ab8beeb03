"""Sharpness-aware optimizers on top of any optimizer of timm, registered by name.

A method is one small file or folder here. ``engine`` holds the steps that all methods share, and ``approximate`` the
cheaper passes of ``batchnorm='stacked'`` and ``'exact_ascent'``.
"""

from typing import TYPE_CHECKING

from .._registry import import_siblings
from .engine import BatchClosure, SharpnessAware, StepResult, find_sharpness_aware, optimizer_step, set_epoch

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .asam import ASAM as ASAM
    from .ccsam import CCSAM as CCSAM
    from .focalsam import FocalSAM as FocalSAM
    from .friendlysam import FriendlySAM as FriendlySAM
    from .gnp import GNP as GNP
    from .gsa import GSA as GSA
    from .gsam import GSAM as GSAM
    from .imbsam import ImbSAM as ImbSAM
    from .looksam import LookSAM as LookSAM
    from .rwp import RWP as RWP
    from .sam import SAM as SAM
    from .ssesam import SSESAM as SSESAM

__all__ = ['BatchClosure', 'SharpnessAware', 'StepResult', 'find_sharpness_aware', 'optimizer_step', 'set_epoch']
__all__ += import_siblings(__name__)

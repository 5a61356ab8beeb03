"""Long-tailed losses, each a function and a module, registered by name."""

from typing import TYPE_CHECKING

from .._registry import import_siblings
from ._base import LongTailLoss
from ._criterion import sample_losses, statistics
from ._factory import create_loss, list_losses

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .balanced_softmax import BalancedSoftmaxLoss as BalancedSoftmaxLoss
    from .balanced_softmax import LogitAdjustmentLoss as LogitAdjustmentLoss
    from .balanced_softmax import balanced_softmax_loss as balanced_softmax_loss
    from .balanced_softmax import logit_adjustment_loss as logit_adjustment_loss
    from .balpoe import BalPoELoss as BalPoELoss
    from .bcl import BCLLoss as BCLLoss
    from .bcl import balanced_contrastive_loss as balanced_contrastive_loss
    from .class_balanced import ClassBalancedLoss as ClassBalancedLoss
    from .class_balanced import class_balanced_loss as class_balanced_loss
    from .dense import DenseLoss as DenseLoss
    from .drw import DeferredReweighting as DeferredReweighting
    from .drw import drw_class_weights as drw_class_weights
    from .drw import effective_number_weights as effective_number_weights
    from .drw import prior_power_weights as prior_power_weights
    from .eql import EqualizationLoss as EqualizationLoss
    from .eql import eql_loss as eql_loss
    from .focal import FocalLoss as FocalLoss
    from .focal import focal_loss as focal_loss
    from .gala import GALALoss as GALALoss
    from .gala import gala_loss as gala_loss
    from .gcl import GCLLoss as GCLLoss
    from .gcl import gcl_loss as gcl_loss
    from .lade import LADELoss as LADELoss
    from .lade import lade_loss as lade_loss
    from .lade import lade_regularizer as lade_regularizer
    from .las import LabelAwareSmoothingLoss as LabelAwareSmoothingLoss
    from .las import label_aware_smoothing as label_aware_smoothing
    from .las import label_aware_smoothing_loss as label_aware_smoothing_loss
    from .ldam import LDAMLoss as LDAMLoss
    from .ldam import ldam_loss as ldam_loss
    from .ldam import ldam_margins as ldam_margins
    from .proco import ProCoLoss as ProCoLoss
    from .proco import concentration_of as concentration_of
    from .proco import proco_logits as proco_logits
    from .vs import VSLoss as VSLoss
    from .vs import vs_loss as vs_loss
    from .vs import vs_parameters as vs_parameters

__all__ = ['LongTailLoss', 'create_loss', 'list_losses', 'sample_losses', 'statistics']
__all__ += import_siblings(__name__)

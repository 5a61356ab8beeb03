"""Corrections of a trained classifier's scores: no training, and all on logarithms.

Prediction re-balancing, logit adjustment, tau-normalisation and temperature scaling; each file cites its paper.
Every function on logits returns log-scores, larger is better, in float32 (float64 stays). ``scores.argmax(-1)``
predicts. Scores are not normalised; ``scores.softmax(-1)`` gives probabilities. Nothing is fitted to logits that are
not finite.
"""

from typing import TYPE_CHECKING

from .._registry import POSTHOC, import_siblings
from ._base import PostHocMethod

if TYPE_CHECKING:  # type checkers do not see the names that import_siblings adds
    from .fitted import PostHoc as PostHoc
    from .logit_adjustment import LogitAdjustment as LogitAdjustment
    from .logit_adjustment import logit_adjust as logit_adjust
    from .rebalancing import FLOOR as FLOOR
    from .rebalancing import Rebalancing as Rebalancing
    from .rebalancing import rebalance_predictions as rebalance_predictions
    from .selection import METRICS as METRICS
    from .selection import TAUS as TAUS
    from .selection import choose_tau as choose_tau
    from .tau_normalization import TauNormalization as TauNormalization
    from .tau_normalization import class_norms as class_norms
    from .tau_normalization import tau_normalize as tau_normalize
    from .tau_normalization import tau_normalize_logits as tau_normalize_logits
    from .temperature import Temperature as Temperature
    from .temperature import fit_temperature as fit_temperature
    from .temperature import scale_temperature as scale_temperature

__all__ = ['METHODS', 'PostHocMethod']
__all__ += import_siblings(__name__)

METHODS = tuple(POSTHOC.names())

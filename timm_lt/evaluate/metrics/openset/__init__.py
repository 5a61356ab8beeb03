"""Open-set evaluation: images of known classes and of none of them.

Known images carry their class, unknown ones the label -1. A higher score is more likely known; an image is rejected
if its score lies below the threshold. An image that is not finite (see
:mod:`timm_lt.evaluate.metrics.predictions`) has the score NaN in every kind of score. It is rejected at any threshold,
and nothing is fitted to it.
"""

from . import feature_scores, logit_scores, openmax  # register their scores  # noqa: F401
from .f_measure import (
    DEFINITIONS,
    UNKNOWN,
    choose_threshold,
    open_set_counts,
    open_set_f_measure,
    reject,
)
from .feature_scores import class_prototypes
from .registry import SCORES, OpenSetScore, TrainingOutputs, fit_open_set_score, open_set_scores
from .report import open_set_report, threshold_free

__all__ = [
    'DEFINITIONS', 'SCORES', 'UNKNOWN', 'OpenSetScore', 'TrainingOutputs', 'choose_threshold', 'class_prototypes',
    'fit_open_set_score', 'open_set_counts', 'open_set_f_measure', 'open_set_report', 'open_set_scores', 'reject',
    'threshold_free',
]

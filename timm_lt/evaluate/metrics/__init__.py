"""Metrics of one test and of several: accuracies by class size, calibration, open set, seeds, comparison."""

from typing import TYPE_CHECKING

from ..._moved import renamed
from .calibration import ECE_BINS, calibration_bins, expected_calibration_error
from .closed_set import report, resolve_split_rule
from .openset import (
    TrainingOutputs,
    choose_threshold,
    class_prototypes,
    fit_open_set_score,
    open_set_counts,
    open_set_f_measure,
    open_set_report,
    open_set_scores,
    reject,
    threshold_free,
)
from .predictions import check_predictions, gather_predictions, predict
from .seeds import merge_seeds, posthoc_method
from .significance import compare, mcnemar

__all__ = [
    'ECE_BINS', 'TrainingOutputs', 'calibration_bins', 'check_predictions', 'choose_threshold', 'class_prototypes',
    'compare', 'expected_calibration_error', 'fit_open_set_score', 'gather_predictions', 'mcnemar', 'merge_seeds',
    'open_set_counts', 'open_set_f_measure', 'open_set_report', 'open_set_scores', 'posthoc_method', 'predict',
    'reject', 'report', 'resolve_split_rule', 'threshold_free',
]

if not TYPE_CHECKING:
    __getattr__ = renamed(__name__, correction_method='posthoc_method')

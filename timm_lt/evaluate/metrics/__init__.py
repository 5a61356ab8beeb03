"""Figures of one test and of several: accuracies by class size, calibration, open set, seeds, comparison."""

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
from .seeds import correction_method, merge_seeds
from .significance import compare, mcnemar

__all__ = [
    'ECE_BINS', 'TrainingOutputs', 'calibration_bins', 'check_predictions', 'choose_threshold', 'class_prototypes',
    'compare', 'correction_method', 'expected_calibration_error', 'fit_open_set_score', 'gather_predictions', 'mcnemar',
    'merge_seeds', 'open_set_counts', 'open_set_f_measure', 'open_set_report', 'open_set_scores', 'predict', 'reject',
    'report', 'resolve_split_rule', 'threshold_free',
]

"""Evaluation: metrics by class size, calibration, open set, comparison of runs, landscape, plots, reports.

The test set chooses nothing here: thresholds come from validation images, and transductive metrics are labelled.

- ``metrics``: metrics of logits and labels.
- ``landscape``: geometry of the loss of a network.
- ``reports``: plots and HTML pages of run folders.
- ``cli``: ``python -m timm_lt.evaluate``.
"""

from .landscape import measure_landscape
from .metrics import (
    TrainingOutputs,
    choose_threshold,
    class_prototypes,
    compare,
    fit_open_set_score,
    gather_predictions,
    mcnemar,
    merge_seeds,
    open_set_f_measure,
    open_set_report,
    open_set_scores,
    reject,
    report,
)
from .reports import write_comparison, write_report

__all__ = [
    'TrainingOutputs', 'choose_threshold', 'class_prototypes', 'compare', 'fit_open_set_score', 'gather_predictions',
    'mcnemar', 'measure_landscape', 'merge_seeds', 'open_set_f_measure', 'open_set_report', 'open_set_scores', 'reject',
    'report', 'write_comparison', 'write_report',
]

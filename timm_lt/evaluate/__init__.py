"""Evaluation: figures by class size, calibration, open set, comparison of runs, landscape, plots, reports.

The test set chooses nothing here: thresholds come from validation images, and what is transductive is labelled.
"""

from .html_comparison import write_comparison
from .html_report import write_report
from .landscape import measure_landscape
from .metrics import gather_predictions, merge_seeds, report
from .openset import (
    choose_threshold,
    class_prototypes,
    open_set_f_measure,
    open_set_report,
    open_set_scores,
    reject,
)
from .significance import compare, mcnemar

__all__ = [
    'choose_threshold', 'class_prototypes', 'compare', 'gather_predictions', 'mcnemar', 'measure_landscape',
    'merge_seeds', 'open_set_f_measure', 'open_set_report', 'open_set_scores', 'reject', 'report', 'write_comparison',
    'write_report',
]

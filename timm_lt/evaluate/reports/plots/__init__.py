"""Plots of the reports. Each function returns a matplotlib figure; :func:`save` writes it."""

from .class_size import accuracy_by_class_size, per_class_bars, weight_norms
from .comparison import compare_curves, split_bars
from .landscape import landscape_lines, landscape_surfaces
from .predictions import reliability, split_confusion
from .style import has_glyphs, save, to_svg
from .training import gkp_inner_life, training_curves

__all__ = [
    'accuracy_by_class_size', 'compare_curves', 'gkp_inner_life', 'has_glyphs', 'landscape_lines',
    'landscape_surfaces', 'per_class_bars', 'reliability', 'save', 'split_bars', 'split_confusion', 'to_svg',
    'training_curves', 'weight_norms',
]

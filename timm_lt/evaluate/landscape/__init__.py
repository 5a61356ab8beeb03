"""Loss landscape of a trained network by class size: sharpness, curvature, lines and surfaces of the loss."""

from .curvature import gradient_cosine, hessian_trace, mean_gradient, top_eigenvalue
from .measure import filter_normalized_direction, loss_line, loss_surface, measure_landscape, sharpness

__all__ = [
    'filter_normalized_direction', 'gradient_cosine', 'hessian_trace', 'loss_line', 'loss_surface', 'mean_gradient',
    'measure_landscape', 'sharpness', 'top_eigenvalue',
]

"""GKP+GSA: memory-based grouping of classes, knowledge preservation, and the callback of the training loop."""

from ._images import capped_indices, images_per_class
from .bank import MemoryBank
from .callback import GKP, encoder_parameters
from .fisher import diagonal_fisher
from .grouping import (
    canonical_groups,
    class_gradient_cosine,
    class_gradient_similarity,
    group_classes,
    spectral_groups,
)
from .penalty import GroupPenalty, QuadraticPenalty, alpha_schedule
from .quality import FeatureQuality, QualityMeter, feature_quality

__all__ = [
    'FeatureQuality', 'GKP', 'GroupPenalty', 'MemoryBank', 'QuadraticPenalty', 'QualityMeter', 'alpha_schedule',
    'canonical_groups', 'capped_indices', 'class_gradient_cosine', 'class_gradient_similarity', 'diagonal_fisher',
    'encoder_parameters', 'feature_quality', 'group_classes', 'images_per_class', 'spectral_groups',
]

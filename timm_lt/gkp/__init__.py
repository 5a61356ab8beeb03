"""GKP+GSA: memory-based grouping of classes, knowledge preservation, and the task that drives them in training."""

from ._images import capped_indices, images_per_class
from .bank import MemoryBank
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
from .task import GKP

__all__ = [
    'FeatureQuality', 'GKP', 'GroupPenalty', 'MemoryBank', 'QuadraticPenalty', 'QualityMeter', 'alpha_schedule',
    'canonical_groups', 'capped_indices', 'class_gradient_cosine', 'class_gradient_similarity', 'diagonal_fisher',
    'feature_quality', 'group_classes', 'images_per_class', 'spectral_groups',
]

"""GKP+GSA: memory-based grouping of classes, knowledge preservation, and the task that drives them in training."""

from .bank import MemoryBank
from .fisher import diagonal_fisher
from .grouping import canonical_groups, class_gradient_cosine, group_classes, spectral_groups
from .penalty import GroupPenalty, QuadraticPenalty, alpha_schedule
from .quality import FeatureQuality, QualityMeter, feature_quality

__all__ = [
    'FeatureQuality', 'GroupPenalty', 'MemoryBank', 'QuadraticPenalty', 'QualityMeter', 'alpha_schedule',
    'canonical_groups', 'class_gradient_cosine', 'diagonal_fisher', 'feature_quality', 'group_classes',
    'spectral_groups',
]

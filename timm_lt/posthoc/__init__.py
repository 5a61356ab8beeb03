"""Corrections of a trained classifier's scores: no training, and all on logarithms.

Prediction re-balancing, logit adjustment, tau-normalisation and temperature scaling; each file cites its paper.
Every function on logits returns log-scores, larger is better, in float32 (float64 stays). ``scores.argmax(-1)``
predicts. Scores are not normalised; ``scores.softmax(-1)`` gives probabilities. Nothing is fitted to logits that are
not finite.
"""

from .._registry import POSTHOC, import_siblings
from ._base import PostHocMethod

__all__ = ['METHODS', 'PostHocMethod', *import_siblings(__name__)]

METHODS = tuple(POSTHOC.names())

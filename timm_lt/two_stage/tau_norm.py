"""tau-normalised classifier.

Paper: B. Kang et al., "Decoupling Representation and Classifier for Long-Tailed Recognition", ICLR 2020,
https://arxiv.org/abs/1910.09217
Implements: Eq. (4), ``W_c / |W_c|**tau``, bias left out, see :func:`timm_lt.posthoc.tau_normalize`.
Source: written from the paper.
Differs from the paper / official code: tau is chosen on a validation part cut from the training images, never on test
images.
"""

from collections.abc import Sequence
from typing import Any

import torch.nn as nn
from torch import Tensor

from .._registry import register_second_stage
from .._types import ClassCounts
from .._validate import check_numbers, check_option, check_range
from ..posthoc import METRICS, TAUS, choose_tau, tau_normalize
from ._base import SecondStageMethod


@register_second_stage('tau_norm', paper='Kang et al., ICLR 2020', needs=('class_counts', 'validation'))
class TauNormalization(SecondStageMethod):
    """Divide each class vector by the tau-th power of its norm; nothing is trained.

    Args:
        class_counts: Training images per class, (C,), each >= 1.
        tau: Strength, >= 0; None chooses it on the validation part.
        taus: Values to choose from, one or more, each >= 0.
        metric: What the choice maximises: 'balanced_accuracy' or 'accuracy' on the validation part.
    """

    trained = False
    head: nn.Linear

    def __init__(
            self,
            class_counts: ClassCounts,
            *,
            tau: float | None = None,
            taus: Sequence[float] = TAUS,
            metric: str = 'balanced_accuracy',
    ) -> None:
        super().__init__(class_counts)
        self.tau = None if tau is None else check_range('tau', tau, 0)
        self.taus = check_numbers('taus', taus, 0)
        self.metric = check_option('metric', metric, METRICS)

    def make_head(self, classifier: nn.Module) -> nn.Module:
        if not isinstance(classifier, nn.Linear):
            raise ValueError(
                'tau_norm changes no prediction of a cosine classifier, because all its class vectors have the same '
                'norm; use another second stage or a linear classifier')
        return classifier

    def fit(
            self,
            features: Tensor,
            labels: Tensor,
            val_features: Tensor | None = None,
            val_labels: Tensor | None = None,
    ) -> dict[str, Any]:
        tau = self.tau
        chosen: dict[str, Any] = {'tau_chosen_by': 'nothing: given'}
        if tau is None:
            if val_features is None or val_labels is None or len(val_features) == 0:
                raise ValueError(
                    'tau_norm chooses tau on validation images and got none; cut a validation part from the training '
                    'images (--val-fraction 0.1), or give tau (--stage2-kwargs tau=0.7)')
            logits = self.head(val_features.to(self.head.weight))
            choice = choose_tau(
                'tau_normalize', logits, val_labels.to(logits.device), classifier=self.head, taus=self.taus,
                metric=self.metric)
            tau = choice.tau
            chosen = {'tau_chosen_by': f'validation part, {self.metric}', 'val_score': choice.score}
        tau_normalize(self.head, tau)
        return {'tau': tau, **chosen}

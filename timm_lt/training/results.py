"""Rules by which metrics are computed, and the result of a stage of training."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch.nn as nn
from torch import Tensor

from ..class_distribution import ClassDistribution
from ..evaluate import report
from ..evaluate.metrics import resolve_split_rule
from ..evaluate.metrics.views import ViewAverage
from .options import EvaluationOptions


@dataclass(frozen=True)
class MetricRules:
    """Rules by which the metrics of a run are computed.

    Attributes:
        distribution: Training images per class.
        split_rule: Rule of the many / medium / few split, resolved.
        bootstrap: Resamples for confidence intervals; 0: none.
        seed: Seed of the resamples.
        tta: Views of a test image whose logits are averaged; 0 and 1: the image alone.
    """
    distribution: ClassDistribution
    split_rule: str
    bootstrap: int = 0
    seed: int = 0
    tta: int = 0

    @classmethod
    def of(cls, options: EvaluationOptions, distribution: ClassDistribution, seed: int = 0) -> 'MetricRules':
        rule = resolve_split_rule(distribution, options.split_rule)
        return cls(distribution, rule, options.bootstrap, seed, options.tta)

    @property
    def splits(self) -> dict[str, Tensor]:
        """Masks (C,) of the many-, medium- and few-shot classes."""
        return self.distribution.splits(self.split_rule)

    def report(self, logits: Tensor, targets: Tensor, **changes: Any) -> dict[str, Any]:
        """:func:`timm_lt.evaluate.report` by these rules; ``changes`` are its arguments."""
        arguments = {'split_rule': self.split_rule, 'class_names': self.distribution.class_names,
                     'bootstrap': self.bootstrap, 'seed': self.seed}
        return dict(report(logits, targets, self.distribution.counts, **(arguments | changes)))

    def evaluated(self, model: nn.Module, input_size: Sequence[int]) -> nn.Module:
        """The model as it is evaluated: itself, or its mean over views of size ``input_size`` (channels, H, W)."""
        return ViewAverage(model, self.tta, input_size[1:]) if self.tta > 1 else model


@dataclass
class StageResult:
    """The result of a stage.

    Attributes:
        model: The trained timm model without wrappers.
        logits: Scores of the test images, (N, C).
        targets: Their labels, (N,).
        epochs: Epochs of the stage.
        reported_epoch: Epoch of ``model``, from 0; None: no epoch was trained.
        chosen_by: Part or rule that chose that epoch.
        seconds: Time of training.
        images: Number of images seen in training, over all processes.
        skipped_steps: Steps that the gradient scaler skipped.
        weights: 'raw', or the moving average that ``model`` holds.
    """
    model: nn.Module
    logits: Tensor
    targets: Tensor
    epochs: int = 0
    reported_epoch: int | None = None
    chosen_by: str = ''
    seconds: float = 0.0
    images: int = 0
    skipped_steps: int = 0
    weights: str = 'raw'

    @property
    def images_per_second(self) -> float:
        return self.images / max(self.seconds, 1e-9)

"""Base of the second stages: a frozen backbone, a trained or fitted head, and a plain model at the end."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._capture import captured_inputs
from .._classifier import find_classifier, kind_of_classifier, replace_classifier
from .._types import ClassCounts
from .._validate import check_class_counts
from ..losses._criterion import mean_normalizer, sample_losses
from ..models.cosine_classifier import CosineClassifier
from ..models.scaled_classifier import ScaledClassifier

__all__ = ['SecondStageMethod', 'classifier_inputs']

Classifier = nn.Linear | CosineClassifier


class SecondStageMethod(nn.Module):
    """Base of the second stages. As a module it holds the head alone, so that checkpoints and DDP see only that.

    The loop calls ``prepare(model)`` first and ``finish(model)`` last. Between them a :attr:`trained` method gets
    ``set_mode(model)`` each epoch. Each step calls ``method(features, target, criterion, progress)`` -> loss and
    ``project()``. Other methods get one :meth:`fit`. While the second stage runs, the head replaces the model's
    classifier, so ``model(images)`` gives the logits of the head.

    Args:
        class_counts: Training images per class, (C,), each >= 1, or a ``ClassDistribution``.
    """

    sampler = 'class_balanced'
    loss = 'ce'
    epochs = 30
    lr = 0.1
    trained = True  # False: fitted in closed form, without epochs
    caches_features = True  # the backbone gives an image the same features all the time
    head: nn.Module
    class_counts: Tensor

    def __init__(self, class_counts: ClassCounts) -> None:
        super().__init__()
        counts = check_class_counts(class_counts, who=type(self).__name__)
        self.register_buffer('class_counts', counts, persistent=False)

    def prepare(self, model: nn.Module) -> None:
        """Freeze the model and replace its classifier by the method's head.

        Raises:
            ValueError: If the model has no classifier, several, one of another kind, or another number of classes.
        """
        classifier = frozen_classifier(model)
        if classifier.weight.shape[0] != len(self.class_counts):
            raise ValueError(
                f'{type(self).__name__}: the model has {classifier.weight.shape[0]} classes, class_counts '
                f'{len(self.class_counts)}; create the model with num_classes={len(self.class_counts)}')
        model.requires_grad_(False)
        self.class_counts = self.class_counts.to(classifier.weight.device)
        head = self.make_head(classifier)
        self.use_head(head)
        replace_classifier(model, classifier, head)
        self.set_mode(model)

    def make_head(self, classifier: Classifier) -> nn.Module:
        """The head, from the frozen classifier of the first stage: that layer itself, or a module around it."""
        return classifier

    def use_head(self, head: nn.Module) -> None:
        """Take ``head`` as the head; ``prepare`` does."""
        self.head = head
        for p in self.trained_parameters():
            p.requires_grad_(True)

    def trained_parameters(self) -> list[nn.Parameter]:
        return list(self.head.parameters()) if self.trained else []

    def param_groups(self) -> list[dict[str, Any]]:
        """Groups for an optimizer; ``lr_scale`` in a group is the factor that timm's schedules put on its lr."""
        return [{'params': self.trained_parameters()}]

    def set_mode(self, model: nn.Module) -> None:
        """Put the frozen model in the mode in which it gives features: evaluation, BatchNorm too."""
        model.eval()

    def logits(self, features: Tensor) -> Tensor:
        return self.head(features)

    def forward(self, features: Tensor, target: Tensor, criterion: Any, progress: float) -> Tensor:
        """Mean loss of a batch; what it divides by is :meth:`normalizer`.

        Args:
            features: Input of the classifier, (B, D).
            target: Class of each sample, (B,).
            criterion: The loss, see :func:`timm_lt.losses.sample_losses`.
            progress: Share of the second stage that is over with this epoch, in (0, 1].
        """
        values, normalizer = sample_losses(criterion, self.logits(features), target)
        return values.sum() / normalizer.to(values.dtype)

    def normalizer(self, target: Tensor, criterion: Any) -> Tensor:
        """Weight of a batch among others of the same step, a scalar tensor: what ``forward`` divides by."""
        return mean_normalizer(criterion, target)

    def fit(
            self,
            features: Tensor,
            labels: Tensor,
            val_features: Tensor | None = None,
            val_labels: Tensor | None = None,
    ) -> dict[str, Any]:
        """Set the head from the features of all training images; methods that are not trained.

        Returns:
            What was chosen, for the report.
        """
        raise TypeError(f'{type(self).__name__} is trained, it has no closed form')

    def project(self) -> None:
        """Bring the head back into the set that the method allows; the loop calls it after each step."""

    def finish(self, model: nn.Module) -> bool:
        """Fold the head into a plain classifier of the model. False where that is impossible and the head stays."""
        model.requires_grad_(True)
        return True


def fold_scales(model: nn.Module, head: ScaledClassifier) -> bool:
    """Replace ``head`` by the folded linear layer; False and no change if it cannot be folded."""
    folded = head.fold()
    if folded is not None:
        replace_classifier(model, head, folded)
    model.requires_grad_(True)
    return folded is not None


def frozen_classifier(model: nn.Module) -> Classifier:
    """The classifier of a timm model.

    Raises:
        ValueError: If the model has none, several, or one of another kind.
    """
    classifier = find_classifier(model)
    if not isinstance(classifier, (nn.Linear, CosineClassifier)):
        raise ValueError(
            f'{type(model).__name__}: a second stage needs a model with exactly one linear or cosine classifier, got '
            f'{kind_of_classifier(model)}; create it with num_classes > 0 and a single linear head')
    return classifier


@torch.no_grad()
def classifier_inputs(model: nn.Module, images: Tensor) -> Tensor:
    """Features of images, (B, D): what the classifier of a timm model is called with.

    Raises:
        ValueError: If the model has not one classifier, or the forward pass does not call it exactly once.
    """
    classifier = find_classifier(model)
    if classifier is None:
        kind = kind_of_classifier(model)
        raise ValueError(f'{type(model).__name__}: a second stage needs one classifier, got {kind}')
    with captured_inputs(classifier) as inputs:
        model(images)
    if len(inputs) != 1:
        raise ValueError(f'{type(model).__name__} calls its classifier {len(inputs)} times, a second stage needs once')
    return inputs[0]


def follow_batches(model: nn.Module) -> None:
    """Let the running statistics of BatchNorm follow the batches, in a model in evaluation mode."""
    for layer in batchnorm_layers(model):
        layer.train()


def batchnorm_layers(model: nn.Module) -> Sequence[nn.Module]:
    """BatchNorm layers with running statistics."""
    return [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.track_running_stats]

"""``--finetune head``: a network's classifier, trained as a network of its own on features that are computed once."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch.nn as nn
from torch import Tensor

from .._classifier import find_classifier, kind_of_classifier
from .._unwrap import unwrap_model
from .errors import ConfigError
from .evaluation import evaluate, validation_metrics
from .features import FeatureLoader, FeatureModel, feature_loader, training_features
from .stage import NetworkObjective
from .trainer import Trainer

if TYPE_CHECKING:
    from .stage import Stage

__all__ = ['FeatureClassifier', 'ProbeObjective']


class FeatureClassifier(nn.Module):
    """The classifier of a network, of whose weights nothing else is trained or saved.

    Args:
        network: A timm model with one classifier, which this module shares.
        drop_rate: Dropout of the features, in [0, 1).

    Raises:
        ConfigError: If the network has not one classifier.
    """

    def __init__(self, network: nn.Module, drop_rate: float = 0.0) -> None:
        super().__init__()
        classifier = find_classifier(network)
        if classifier is None:
            raise ConfigError(
                f'--finetune head needs a network with one classifier, got {kind_of_classifier(network)}')
        self.classifier = classifier
        self.dropout = nn.Dropout(drop_rate)
        self._network = [network]  # in a list, it is no submodule

    def forward(self, features: Tensor) -> Tensor:
        return self.classifier(self.dropout(features))

    def get_classifier(self) -> nn.Module:
        return self.classifier

    def plain_model(self) -> nn.Module:
        """The network, with this classifier."""
        return self._network[0]


@dataclass(frozen=True)
class ProbeObjective(NetworkObjective):
    """The classifier of a frozen network, on features.

    Attributes:
        model: A :class:`FeatureClassifier`.
    """

    def loader(self, stage: 'Stage') -> FeatureLoader:
        model: Any = self.model
        network = model.plain_model().to(stage.accelerator.device)
        features = training_features(stage, network)
        return feature_loader(stage, features.values, features.targets, '--sampler')

    def validation(self, stage: 'Stage') -> Callable[[Trainer], dict[str, Any]]:
        if stage.rules.tta > 1:  # several views of an image
            return super().validation(stage)
        model: Any = self.model
        accelerator = stage.accelerator
        loader = stage.pipeline.evaluation(stage.data.validation)
        features, targets = evaluate(FeatureModel(model.plain_model()), loader, accelerator)
        own = slice(accelerator.process_index, None, accelerator.num_processes)
        batches = [(features[own].to(accelerator.device), targets[own].to(accelerator.device))]
        return validation_metrics(batches, stage.rules, lambda learner: unwrap_model(learner.eval_model)[0])

"""Fine-tuning of a run: what is trained, and the classifier at the start."""

from typing import Any

import torch.nn as nn

from .. import finetune
from .._unwrap import plain_model
from ..finetune.head_init import FROM_FEATURES, initialize_head
from .errors import ConfigError
from .evaluation import evaluate
from .features import FeatureModel
from .options import FinetuneOptions
from .probe import FeatureClassifier, ProbeObjective
from .stage import NetworkObjective, Stage


def apply_finetuning(options: FinetuneOptions, model: nn.Module) -> None:
    """Freeze what ``--finetune`` does not train.

    Raises:
        ConfigError: If the method has no meaning for the model.
    """
    if options.finetune is None:
        return
    try:
        finetune.apply(model, options.finetune, **options.finetune_kwargs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--finetune {options.finetune}: {e}') from e


def initialize_classifier(stage: Stage, model: nn.Module) -> None:
    """Set the classifier as ``--head-init`` says, from training images under the evaluation transform.

    Raises:
        ConfigError: If classifier or file do not fit.
    """
    options = stage.options.finetune
    if options.head_init in (None, 'random'):
        return
    features: tuple = ()
    if options.head_init in FROM_FEATURES:
        loader = stage.pipeline.some_of_each_class(
            stage.data.train, options.head_init_images, stage.options.run.seed)
        features = evaluate(FeatureModel(model.to(stage.accelerator.device)), loader, stage.accelerator)
    try:
        initialize_head(model, str(options.head_init), *features)
    except ValueError as e:
        raise ConfigError(f'--head-init {options.head_init}: {e}') from e


def network_objective(stage: Stage, model: nn.Module) -> NetworkObjective:
    """The objective of the first stage: the network, or its classifier on cached features."""
    if stage.options.finetune.probes:
        return ProbeObjective(FeatureClassifier(model, stage.options.model.drop))
    return NetworkObjective(model)


def finetuning_facts(options: FinetuneOptions, model: Any) -> dict[str, Any]:
    """Method and number of trained parameters, for ``metrics.json``; nothing without ``--finetune``."""
    if options.finetune is None:
        return {}
    tuned = finetune.tuned_parameters(plain_model(model))
    return {'finetune': options.finetune, 'num_tuned_parameters': sum(p.numel() for p in tuned.values())}

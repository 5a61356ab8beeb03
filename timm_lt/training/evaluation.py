"""Logits of a model, metrics of a validation part, and the epoch that is reported."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from ..evaluate import gather_predictions
from .checkpoint import load_checkpoint
from .learner import Learner
from .outputs import RunFolder
from .results import MetricRules
from .trainer import Trainer


@torch.no_grad()
def evaluate(model: nn.Module, loader: Any, accelerator: Accelerator) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and labels (N,) of a whole split on every process, each image once, in the split's order."""
    was_training = model.training
    model.eval()
    outputs, labels = [], []
    for input, target in loader:
        with accelerator.autocast():
            outputs.append(model(input).float())
        labels.append(target)
    model.train(was_training)
    logits, targets = gather_predictions(outputs, labels, accelerator)
    world = accelerator.num_processes
    if world > 1:  # process r had images r, r + W, ...
        order = torch.cat([torch.arange(r, len(targets), world) for r in range(world)]).argsort()
        logits, targets = logits[order], targets[order]
    return logits, targets


def validation_metrics(
        loader: Any,
        rules: MetricRules,
        model_of: Callable[[Learner], nn.Module],
) -> Callable[[Trainer], dict[str, Any]]:
    """A function that measures a trainer's model on the validation part.

    Args:
        loader: Gives the images of the validation part, or their features.
        rules: How metrics are computed.
        model_of: The model of a learner that takes what the loader gives.
    """
    def validate(trainer: Trainer) -> dict[str, Any]:
        model = model_of(trainer.learner)
        result = rules.report(*evaluate(model, loader, trainer.accelerator), bootstrap=0)
        names = ('top1', 'balanced_accuracy', 'many', 'medium', 'few', trainer.eval_metric)
        return {k: result[k] for k in dict.fromkeys(names)}

    return validate


def validation_choice(eval_metric: str) -> str:
    """The part and the metric that chose, in words."""
    return f'validation part, {"top-1" if eval_metric == "top1" else eval_metric}'


def choose_epoch(trainer: Trainer, folder: RunFolder) -> tuple[int | None, str]:
    """The epoch that is reported: the validation part's best where there is such a part, else the last, if any.

    The trainer's model takes the weights of that epoch.
    """
    if trainer.progress.best:
        epoch, progress = trainer.progress.best['epoch'], trainer.progress.state_dict()
        load_checkpoint(trainer.accelerator, folder.path / 'best')
        trainer.progress.load_state_dict(progress)  # time and images are of the whole run
        return epoch, validation_choice(trainer.eval_metric)
    if trainer.epochs == 0:  # the checkpoint that the second stage starts from
        trainer.save()
    folder.write_best_as_last(trainer.epochs - 1)
    if trainer.epochs == 0:
        return None, 'nothing: no epoch was trained'
    return trainer.epochs - 1, 'nothing: the last epoch'

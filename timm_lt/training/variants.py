"""Forms of a trained network, reported beside each other: single and averaged weights, one and several views."""

from dataclasses import replace
from typing import Any

import torch
import torch.nn as nn

from .averaging import LastEpochs
from .evaluation import validation_choice
from .results import StageResult
from .stage import Objective, Stage
from .trainer import Trainer

COLUMNS = ('top1', 'balanced_accuracy', 'many', 'medium', 'few', 'ece')


def results_of(stage: Stage, objective: Objective, trainer: Trainer) -> tuple[StageResult, list[dict[str, Any]]]:
    """The result of a trained stage, and the metrics of its variants, none where there is one form alone.

    The average of the last epochs is the result where the validation part prefers it, or where ``--average-export``
    asks for it.

    Args:
        stage: The stage.
        objective: Its objective.
        trainer: After ``fit``.

    Returns:
        The result, and a row of test metrics for each variant. ``label`` names it, and ``reported`` marks the result.
        ``validation`` is the metric that chose, in percent, or None.
    """
    callback = next((c for c in trainer.callbacks if isinstance(c, LastEpochs)), None)
    if callback is None:
        single = stage.result(objective, trainer)
        return single, _without_views(stage, single)
    # before the checkpoint of the best epoch replaces the callback's state
    average, weights = callback.averaged(trainer), f'average of the last {callback.epochs} epochs'
    single = stage.result(objective, trainer)
    renew_statistics(average, stage)
    objective.finish(average)
    logits, targets = stage.evaluate(average, stage.data.test)
    averaged = replace(
        single, model=average, logits=logits, targets=targets, reported_epoch=trainer.progress.epoch - 1,
        weights=weights, chosen_by='--average-export')
    validation = [stage.validation_metric(result.model) for result in (single, averaged)]
    if not stage.options.model.average_export:
        averaged.chosen_by = validation_choice(stage.options.evaluation.eval_metric)
    chosen = averaged if stage.options.model.average_export or _better(*validation) else single
    rows = [
        _row(stage, result, label, result is chosen, figure)
        for result, label, figure in ((single, 'single model', validation[0]), (averaged, weights, validation[1]))]
    return chosen, rows + _without_views(stage, chosen)[1:]


def _better(single: float | None, averaged: float | None) -> bool:
    return single is not None and averaged is not None and averaged > single


def _row(
        stage: Stage, result: StageResult, label: str, reported: bool, validation: float | None = None,
) -> dict[str, Any]:
    metrics = stage.rules.report(result.logits, result.targets, bootstrap=0)
    return {'label': label, 'reported': reported, 'validation': validation, **{k: metrics[k] for k in COLUMNS}}


def _without_views(stage: Stage, result: StageResult) -> list[dict[str, Any]]:
    """With ``--tta``: rows of the result, and of its network on one view of each image."""
    if stage.rules.tta < 2:
        return []
    one_view = replace(stage, rules=replace(stage.rules, tta=0))
    logits, targets = one_view.evaluate(result.model, stage.data.test)
    return [_row(stage, result, f'{stage.rules.tta} views of an image', True),
            _row(stage, replace(result, logits=logits, targets=targets), 'one view of an image', False)]


@torch.no_grad()
def renew_statistics(model: nn.Module, stage: Stage) -> None:
    """Replace BatchNorm's running statistics by those of one epoch of augmented training images, in place.

    Layers whose statistics fine-tuning froze keep them, which ``torch.optim.swa_utils.update_bn`` would reset.

    Args:
        model: A network without wrappers, left in evaluation mode.
        stage: Gives the images, in the order of the sampler, and the precision.
    """
    accelerator = stage.accelerator
    model.train()
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training]
    momenta = [layer.momentum for layer in layers]
    for layer in layers:
        layer.reset_running_stats()
        layer.momentum = None  # the mean over all batches
    if layers:
        images = stage.pipeline.training(stage.data.train, stage.options.schedule.epochs)
        with torch.random.fork_rng(), accelerator.autocast():  # dropout draws nothing from the stages that follow
            for batch, _ in images:
                model(batch)
    for layer, momentum in zip(layers, momenta):
        layer.momentum = momentum
        for statistic in (layer.running_mean, layer.running_var):
            if statistic is not None:
                statistic.copy_(accelerator.reduce(statistic, reduction='mean'))
    model.eval()

"""The post-hoc correction of a run: fitted on the final classifier, without test images unless it says otherwise.

A correction belongs to one classifier and is stored with its weights. The run folder and ``hub/`` hold it for the
exported model. ``stage2/`` holds it for a head that a second stage leaves as a module.
"""

import logging
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn as nn
from torch import Tensor

from .._registry import POSTHOC
from .._validate import check_option, check_range, nearest_names
from ..posthoc import METHODS, METRICS, PostHoc, choose_tau, class_norms, fit_temperature
from .errors import ConfigError
from .options import PosthocOptions
from .outputs import RunFolder
from .results import StageResult
from .stage import Stage

_logger = logging.getLogger(__name__)

CHECKS = {
    'tau': partial(check_range, 'tau', low=0), 'floor': partial(check_range, 'floor', low=0, high=1),
    'metric': partial(check_option, 'metric', options=METRICS),
    'transductive': partial(check_option, 'transductive', options=(True, False)),
}
REPORTED = ('top1', 'top5', 'balanced_accuracy', 'many', 'medium', 'few', 'per_class', 'ece', 'posthoc', 'transductive')


def check_posthoc(options: PosthocOptions, validation: bool) -> None:
    """Raise a ConfigError for a correction that cannot be made, before anything is trained.

    Args:
        options: Name the correction.
        validation: There will be a validation part.
    """
    name = str(options.posthoc)
    if name not in METHODS:
        raise ConfigError(f'unknown correction {name!r}. {nearest_names(str(name), METHODS)}')
    allowed = POSTHOC.trait(name, 'options', ())
    for key, value in options.posthoc_kwargs.items():
        if key not in allowed:
            raise ConfigError(f'--posthoc {name} has no option {key!r}; it has: {", ".join(allowed) or "none"}')
        try:
            CHECKS[key](value)
        except (TypeError, ValueError) as e:
            raise ConfigError(f'--posthoc-kwargs: {e}') from e
    if 'validation' in POSTHOC.info(name).needs and not validation:
        raise ConfigError(f'--posthoc {name} is fitted on validation images: give --val-fraction or --val-split')


def check_posthoc_classifier(options: PosthocOptions, model: nn.Module) -> None:
    """Raise a ConfigError for a correction that has no meaning for the classifier, before anything is trained.

    Args:
        options: Name the correction.
        model: The network with the classifier that the run will end with.
    """
    if 'classifier' in POSTHOC.info(str(options.posthoc)).needs:
        try:
            class_norms(model)
        except TypeError as e:
            raise ConfigError(f'--posthoc {options.posthoc}: {e}') from e


def apply_posthoc(options: PosthocOptions, stage: Stage, result: StageResult, folder: RunFolder) -> dict[str, Any]:
    """Fit the correction that ``--posthoc`` names, write ``posthoc.json`` and report the test images with it.

    Args:
        options: Name the correction.
        stage: Gives logits of other images, and the rules of the metrics.
        result: The network with the classifier to correct, and its logits of the test images.
        folder: Takes the correction; the weights of the network lie there or in its ``hub/``.

    Returns:
        An entry for ``metrics.json`` with the metrics under ``corrected``. ``correction_left_out`` gives the reason in
        one sentence where the classifier or its logits allow no correction.
    """
    data = stage.data
    images, fitted_on = (data.train, 'the training images') if data.validation is None else (
        data.validation, 'the validation part')
    fitting = stage.evaluate(result.model, images)
    try:
        fitted = fit_posthoc(
            options, result.model, data.distribution.counts, *fitting, choose=data.validation is not None)
        metrics = stage.rules.report(result.logits, result.targets, posthoc=fitted, bootstrap=0)
    except (TypeError, ValueError) as e:  # the training is over: its results count more than the correction
        folder.write_posthoc(None)
        reason = f'--posthoc {options.posthoc}: {e}'
        if stage.accelerator.is_main_process:
            _logger.warning('no correction is kept in %s: %s', folder.path, reason)
        return {'correction_left_out': reason}
    folder.write_posthoc(fitted)
    fitted_on = 'the test images themselves' if fitted.transductive else fitted_on
    return {'corrected': {'label': fitted.label, 'fitted_on': fitted_on, **{k: metrics[k] for k in REPORTED}}}


def fit_posthoc(
        options: PosthocOptions,
        model: nn.Module,
        class_counts: Tensor,
        logits: Tensor,
        targets: Tensor,
        choose: bool,
) -> PostHoc:
    """The correction that ``--posthoc`` names.

    Args:
        options: Name the correction; a tau given there is taken.
        model: Network with the classifier to correct.
        class_counts: Training images per class, (C,).
        logits: Its logits of the images to fit on, (M, C).
        targets: Their labels, (M,).
        choose: Choose tau by these images, which the network was not trained on; else tau is 1, as published.

    Raises:
        TypeError: If the correction has no meaning for the classifier.
        ValueError: If no correction is named, or the logits are not finite.
    """
    if options.posthoc is None:
        raise ValueError('no correction is named; pass --posthoc')
    if options.posthoc == 'temperature':
        return fit_temperature(logits, targets)
    kwargs = dict(options.posthoc_kwargs)
    choose = choose and 'tau' not in kwargs
    if not choose:
        kwargs['taus'] = (kwargs.pop('tau', 1.0),)
    fitted = choose_tau(options.posthoc, logits, targets, class_counts=class_counts, classifier=model, **kwargs)
    return fitted if choose else replace(fitted, metric=None, score=None)

"""The post-hoc correction of a run: fitted on the final classifier, without test images unless it says otherwise.

A correction belongs to one classifier and lies beside its weights: in the run folder and ``hub/`` for the exported
model, in ``stage2/`` for a head that a second stage leaves as a module.
"""

import logging
from argparse import Namespace
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from .._registry import POSTHOC
from .._validate import check_option, check_range, nearest_names
from ..evaluate import report
from ..posthoc import METHODS, METRICS, PostHoc, choose_tau, class_norms, fit_temperature
from .config import ConfigError
from .data import DataParts, evaluation_loader
from .evaluation import evaluate
from .outputs import RunFolder

_logger = logging.getLogger(__name__)

CHECKS = {
    'tau': partial(check_range, 'tau', low=0), 'floor': partial(check_range, 'floor', low=0, high=1),
    'metric': partial(check_option, 'metric', options=METRICS),
    'transductive': partial(check_option, 'transductive', options=(True, False)),
}
FIGURES = ('top1', 'top5', 'balanced_accuracy', 'many', 'medium', 'few', 'per_class', 'ece', 'posthoc', 'transductive')


def check_correction(args: Namespace) -> None:
    """Raise a ConfigError for a correction that cannot be made, before anything is trained."""
    if args.posthoc not in METHODS:
        raise ConfigError(f'unknown correction {args.posthoc!r}. {nearest_names(args.posthoc, METHODS)}')
    method = POSTHOC.info(args.posthoc)
    for name, value in args.posthoc_kwargs.items():
        if name not in method.factory.options:
            allowed = ', '.join(method.factory.options) or 'none'
            raise ConfigError(f'--posthoc {args.posthoc} has no option {name!r}; it has: {allowed}')
        try:
            CHECKS[name](value)
        except (TypeError, ValueError) as e:
            raise ConfigError(f'--posthoc-kwargs: {e}') from e
    if 'validation' in method.needs and not (args.val_split or args.val_fraction):
        raise ConfigError(
            f'--posthoc {args.posthoc} is fitted on validation images: give --val-fraction or --val-split')


def check_classifier(args: Namespace, model: nn.Module) -> None:
    """Raise a ConfigError for a correction that has no meaning for the classifier, before anything is trained.

    Args:
        args: Options of the run.
        model: The network with the classifier that the run will end with.
    """
    if 'classifier' in POSTHOC.info(args.posthoc).needs:
        try:
            class_norms(model)
        except TypeError as e:
            raise ConfigError(f'--posthoc {args.posthoc}: {e}') from e


def correct(
        args: Namespace,
        folder: RunFolder,
        model: nn.Module,
        logits: Tensor,
        targets: Tensor,
        data: DataParts,
        data_config: dict[str, Any],
        rule: str,
        accelerator: Accelerator,
) -> dict[str, Any]:
    """Fit the correction that ``--posthoc`` names, write ``posthoc.json`` and report the test images with it.

    Args:
        args: Options of the run.
        folder: Takes the correction; the weights of ``model`` lie there or in its ``hub/``.
        model: Network with the classifier to correct.
        logits: Its logits of the test images, (N, C).
        targets: Their labels, (N,).
        data: The parts.
        data_config: timm's data configuration of the model.
        rule: Rule of the many / medium / few split.
        accelerator: Accelerate's object.

    Returns:
        An entry for ``metrics.json``: the figures under ``corrected``; where the classifier or its logits allow no
        correction, the reason in one sentence under ``correction_left_out``.
    """
    images, fitted_on = (data.train, 'the training images') if data.validation is None else (
        data.validation, 'the validation part')
    fitting = evaluate(model, evaluation_loader(args, images, data_config, accelerator), accelerator)
    counts = data.distribution.counts
    try:
        correction = fit_correction(args, model, counts, *fitting, choose=data.validation is not None)
        figures = report(
            logits, targets, counts, split_rule=rule, class_names=data.distribution.class_names, posthoc=correction,
            seed=args.seed)
    except (TypeError, ValueError) as e:  # the training is over: its results count more than the correction
        folder.write_correction(None)
        reason = f'--posthoc {args.posthoc}: {e}'
        if accelerator.is_main_process:
            _logger.warning('no correction is kept in %s: %s', folder.path, reason)
        return {'correction_left_out': reason}
    folder.write_correction(correction)
    fitted_on = 'the test images themselves' if correction.transductive else fitted_on
    return {'corrected': {'label': correction.label, 'fitted_on': fitted_on, **{k: figures[k] for k in FIGURES}}}


def fit_correction(
        args: Namespace,
        model: nn.Module,
        class_counts: Tensor,
        logits: Tensor,
        targets: Tensor,
        choose: bool,
) -> PostHoc:
    """The correction that ``--posthoc`` names.

    Args:
        args: Options of the run; a tau given there is taken.
        model: Network with the classifier to correct.
        class_counts: Training images per class, (C,).
        logits: Its logits of the images to fit on, (M, C).
        targets: Their labels, (M,).
        choose: Choose tau by these images, which the network was not trained on; else tau is 1, as published.

    Raises:
        TypeError: If the correction has no meaning for the classifier.
        ValueError: If the logits are not finite.
    """
    if args.posthoc == 'temperature':
        return fit_temperature(logits, targets)
    options = dict(args.posthoc_kwargs)
    choose = choose and 'tau' not in options
    if not choose:
        options['taus'] = (options.pop('tau', 1.0),)
    correction = choose_tau(args.posthoc, logits, targets, class_counts=class_counts, classifier=model, **options)
    return correction if choose else replace(correction, metric=None, score=None)

"""The post-hoc correction of a run: fitted without the test images unless it says otherwise, kept beside the model."""

from argparse import Namespace
from dataclasses import replace
from typing import Any

import torch.nn as nn
from accelerate import Accelerator
from torch import Tensor

from .._validate import nearest_names
from ..posthoc import METHODS, PostHoc, choose_tau, fit_temperature
from .config import ConfigError
from .data import DataParts, evaluation_loader
from .evaluation import evaluate

OPTIONS = {
    'rebalance': ('tau', 'transductive', 'floor', 'metric'), 'logit_adjust': ('tau', 'metric'),
    'tau_normalize': ('tau', 'metric'), 'temperature': (),
}
FIGURES = ('top1', 'top5', 'balanced_accuracy', 'many', 'medium', 'few', 'per_class', 'ece', 'posthoc', 'transductive')


def check_correction(args: Namespace) -> None:
    """Raise a ConfigError for a correction that cannot be made, before anything is trained."""
    if args.posthoc not in METHODS:
        raise ConfigError(f'unknown correction {args.posthoc!r}. {nearest_names(args.posthoc, METHODS)}')
    for name in args.posthoc_kwargs:
        if name not in OPTIONS[args.posthoc]:
            allowed = ', '.join(OPTIONS[args.posthoc]) or 'none'
            raise ConfigError(f'--posthoc {args.posthoc} has no option {name!r}; it has: {allowed}')
    if not isinstance(args.posthoc_kwargs.get('transductive', False), bool):
        raise ConfigError('--posthoc-kwargs transductive must be True or False')
    if args.stage2:
        raise ConfigError('--posthoc corrects the logits of a run without --stage2; give one of the two')
    if args.posthoc == 'temperature' and not (args.val_split or args.val_fraction):
        raise ConfigError('--posthoc temperature is fitted on validation images: give --val-fraction or --val-split')


def fit_correction(
        args: Namespace,
        model: nn.Module,
        data: DataParts,
        data_config: dict[str, Any],
        accelerator: Accelerator,
) -> tuple[PostHoc, str]:
    """The correction that ``--posthoc`` names, and what it was fitted on.

    tau is the one given; else it is chosen on the validation part; without such a part it is 1, as published.
    """
    options = dict(args.posthoc_kwargs)
    chosen = data.validation is not None and 'tau' not in options
    images, fitted_on = (data.train, 'the training images') if data.validation is None else (
        data.validation, 'the validation part')
    logits, targets = evaluate(model, evaluation_loader(args, images, data_config, accelerator), accelerator)
    if args.posthoc == 'temperature':
        return fit_temperature(logits, targets), fitted_on
    if not chosen:
        options['taus'] = (options.pop('tau', 1.0),)
    try:
        correction = choose_tau(
            args.posthoc, logits, targets, class_counts=data.distribution.counts, classifier=model, **options)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'--posthoc {args.posthoc}: {e}') from e
    if not chosen:
        correction = replace(correction, metric=None, score=None)
    return correction, 'the test images themselves' if correction.transductive else fitted_on


def corrected_figures(
        args: Namespace,
        correction: PostHoc,
        fitted_on: str,
        logits: Tensor,
        targets: Tensor,
        data: DataParts,
        rule: str,
) -> dict[str, Any]:
    """The figures with the correction, for ``metrics.json``."""
    from ..evaluate import report
    result = report(
        logits, targets, data.distribution.counts, split_rule=rule, class_names=data.distribution.class_names,
        posthoc=correction, seed=args.seed)
    return {'label': correction.label, 'fitted_on': fitted_on, **{k: result[k] for k in FIGURES}}

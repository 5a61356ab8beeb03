"""Evaluation of one checkpoint on one part of a data set."""

import argparse
from pathlib import Path
from typing import Any

from torch import Tensor

from ...class_distribution import ClassDistribution
from ...hub import Checkpoint
from ..metrics import report
from ..metrics.views import VIEWS
from .data import Data
from .landscape import landscape
from .network import EvaluationError, classifier_of, load_network
from .open_set import check_open_set_options, keep_threshold, needs_features, open_set
from .output import Output, choose_folder, write_output
from .run_parts import RunParts


def evaluate_checkpoint(args: argparse.Namespace) -> int:
    """Evaluate the checkpoint that the options name, and write the folder of the report.

    Returns:
        The exit status, see :func:`write_output`.

    Raises:
        EvaluationError: If checkpoint, class sizes and data do not fit one another.
    """
    check_open_set_options(args)
    network = load_network(
        args.checkpoint, architecture=args.model, num_classes=args.num_classes, device=args.device)
    distribution = find_distribution(args.class_stats, network.num_classes, network.source, network.distribution)
    folder = choose_folder(args.output, args.checkpoint)
    run = RunParts.of(args.checkpoint)
    data = Data(args, network, distribution, run if run is not None and run.fill(args) else None)
    split, dataset = data.tested()
    logits, targets, features = data.collect(dataset, f'split {split}', needs_features(args) or args.landscape)
    posthoc = None if args.no_posthoc else network.posthoc
    metrics = report(
        logits, targets, distribution, split_rule=args.split_rule, class_names=data.class_names, posthoc=posthoc,
        bootstrap=args.bootstrap, seed=args.seed)
    metrics |= _context(args, network, data, split, posthoc)
    rule = metrics['split_rule']
    if args.open_set:
        metrics['open_set'] = open_set(
            args, data, (split, dataset), posthoc, distribution, rule, logits, targets, features)
    if args.keep_threshold:
        keep_threshold(args, network, metrics['open_set'])
    if args.landscape:
        assert features is not None  # collected for --landscape
        metrics['landscape'] = landscape(args, data, dataset, distribution, rule, logits, features)
        metrics['protocol']['landscape'] = f'{args.landscape_images} images of each split of part {split!r}, ' \
                                           f'cross-entropy, evaluation mode'
    named = ClassDistribution(distribution.counts, data.class_names)
    return write_output(folder, Output(
        metrics, targets, named, logits=logits if posthoc is None else posthoc(logits), dataset=dataset,
        recipe=network.recipe))


def find_distribution(
        class_stats: str | None,
        num_classes: int | None,
        source: str,
        known: ClassDistribution | None = None,
) -> ClassDistribution:
    """Training class sizes from the file, else the known ones.

    Args:
        class_stats: Class-stats file, or None.
        num_classes: Classes of the predictions; None where they do not tell.
        source: Name of the predictions, for messages.
        known: Class sizes that the checkpoint brings.

    Raises:
        EvaluationError: If neither has them, or they are of another number of classes.
    """
    if class_stats is None:
        if known is None:
            raise EvaluationError(
                f'the class sizes of the training images of {source!r} are not known; pass --class-stats FILE, '
                f"a JSON file with 'pos_counts' and 'num_samples' as timm writes it")
        distribution = known
    else:
        if not Path(class_stats).is_file():
            raise EvaluationError(f'there is no class-stats file {class_stats}')
        try:
            distribution = ClassDistribution.from_json(class_stats)
        except (TypeError, ValueError) as e:
            named = str(e) if str(class_stats) in str(e) else f'class-stats file {class_stats}: {e}'
            raise EvaluationError(named) from e
    if num_classes is not None and distribution.num_classes != num_classes:
        raise EvaluationError(
            f'the class sizes are of {distribution.num_classes} classes, but the network has {num_classes}')
    return distribution


def _context(args: argparse.Namespace, network: Checkpoint, data: Data, split: str, posthoc: Any) -> dict[str, Any]:
    """Entries of ``metrics.json`` that say what was measured, and how."""
    return {
        'model': network.architecture,
        'num_parameters': network.num_parameters,
        'seed': network.recipe.get('seed'),
        'weight_norms': _weight_norms(network),
        'protocol': {
            'checkpoint': network.source,
            'dataset': args.dataset or str(args.data_dir),
            'test_part': _part(network, data, split),
            **({'test_time_augmentation': VIEWS[data.views]} if data.views > 1 else {}),
            'class_names': data.names_note,
            'class_sizes_from': args.class_stats or 'the checkpoint',
            'epoch_chosen_by': (network.metrics.get('protocol') or {}).get('epoch_chosen_by', 'not known'),
            **_correction_protocol(network, posthoc),
            'bootstrap_seed': args.seed,
        },
    }


def _part(network: Checkpoint, data: Data, split: str) -> str:
    """Images that were evaluated, in the words of the run where they are one of its parts."""
    if data.run is None or not data.run.has(split):
        return f'split {split!r}'
    known = (network.metrics.get('protocol') or {}).get(f'{split}_part')
    return known or f'{split} part of the run'


def _correction_protocol(network: Checkpoint, posthoc: Any) -> dict[str, str]:
    if posthoc is None:
        return {}
    fitted_on = (network.metrics.get('corrected') or {}).get('fitted_on', 'not known')
    chosen = 'nothing: as given'
    if posthoc.method == 'temperature':
        chosen = 'negative log-likelihood of the validation part'
    elif posthoc.metric is not None:
        chosen = f'{posthoc.metric} of the validation part, {100 * posthoc.score:.2f}% there'
    return {'correction_fitted_on': fitted_on, 'correction_strength_chosen_by': chosen}


def _weight_norms(network: Checkpoint) -> list[float] | None:
    try:
        weight: Tensor | None = getattr(classifier_of(network.model), 'weight', None)
    except EvaluationError:
        return None
    if weight is None or weight.shape[0] != network.num_classes or not bool(weight.isfinite().all()):
        return None
    return weight.detach().float().flatten(1).norm(dim=1).tolist()

"""``python -m timm_lt.evaluate``: report of one checkpoint; ``python -m timm_lt.evaluate compare``: of several runs."""

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from torch import Tensor

from .._files import whole_file, write_text
from .._text import printable
from ..class_distribution import SPLIT_NAMES, ClassDistribution
from ..data import ImageSubset
from ._data import Data
from ._open_set_run import check_open_set_options, open_set
from .html_comparison import write_comparison
from .html_report import write_report
from .metrics import report
from .network import EvaluationError, Network, classifier_of, load_network
from .openset import SCORES


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m timm_lt.evaluate', description='Evaluate a checkpoint on a long-tailed data set.',
        epilog="'python -m timm_lt.evaluate compare RUN_DIR RUN_DIR ...' compares runs; the first is the baseline. "
               "'python -m timm_lt.evaluate report RUN_DIR' draws the report and the model card of a run again.")
    add = parser.add_argument
    add('--checkpoint', required=True, metavar='NAME',
        help='run or checkpoint folder, local-dir:FOLDER, hf-hub:USER/NAME, timm model name, or weights file')
    add('--model', metavar='NAME', help='timm name of the network, for a weights file')
    add('--num-classes', type=int, help='classes of the network, for a weights file')
    add('--dataset', default='', metavar='NAME', help="as in train_lt.py, e.g. 'timm_lt/digits', 'hfds/NAME'")
    add('--data-dir', metavar='DIR', help='folder of the images')
    add('--ignore-class-names', action='store_true',
        help='evaluate data whose class names are not those of the checkpoint; labels are used as they are')
    add('--split', help="part to evaluate (default: 'test', else 'validation')")
    add('--class-stats', metavar='FILE', help='class-stats JSON of the training images (default: of the checkpoint)')
    add('--split-rule', default='auto', metavar='RULE',
        help="gt100_lt20, ge100_le20, thirds, 'MANY,FEW', or auto: gt100_lt20, thirds if no class is below 20")
    add('--no-posthoc', action='store_true', help='leave out the correction that the checkpoint brings')
    add('--bootstrap', type=int, default=1000, metavar='N', help='resamples for confidence intervals; 0: none')
    add('--open-set', metavar='NAME', help='data set of unknown classes')
    add('--open-set-dir', metavar='DIR', help='folder of its images')
    add('--open-set-split', help='its part')
    add('--open-set-score', nargs='+', choices=SCORES, help='scores to report (default: softmax energy)')
    add('--threshold-split', metavar='SPLIT',
        help="part whose known images set the threshold (default: 'validation', else 'train'; never tested images)")
    add('--landscape', action='store_true', help='measure the loss landscape of each split (minutes)')
    add('--landscape-images', type=int, default=128, metavar='N', help='images of each split for it')
    add('--rho', type=float, default=0.05, help='radius of the sharpness')
    add('-b', '--batch-size', type=int, default=128)
    add('-j', '--workers', type=int, default=0)
    add('--device', default='cuda' if torch.cuda.is_available() else 'cpu')
    add('--seed', type=int, default=0, help='of bootstrap and random directions')
    add('--output', metavar='DIR', help='folder of the report (default: evaluation/CHECKPOINT)')
    return parser


def build_compare_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m timm_lt.evaluate compare', description='Compare runs; the first is the baseline.')
    parser.add_argument('runs', nargs='+', metavar='RUN_DIR')
    parser.add_argument('--output', default='comparison.html', metavar='FILE')
    parser.add_argument('--bootstrap', type=int, default=2000, metavar='N')
    parser.add_argument('--seed', type=int, default=0)
    return parser


def build_report_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m timm_lt.evaluate report',
        description="Write a run's report.html, plots/ and model card again, from its metrics and predictions.")
    parser.add_argument('run', metavar='RUN_DIR')
    return parser


def write_run_report(run_dir: Path) -> Path:
    """``report.html`` and ``plots/`` of a run, and the model card where there is a ``hub/``; returns the page."""
    from ..hub import HubError, write_hub_card
    page = write_report(run_dir)
    if (run_dir / 'hub').is_dir():
        try:
            write_hub_card(run_dir)
        except HubError as e:
            raise EvaluationError(str(e)) from e
    return page


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; 2 for what the user can mend, in one sentence."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ['compare']:
            args = build_compare_parser().parse_args(argv[1:])
            path = write_comparison(args.runs, args.output, bootstrap=args.bootstrap, seed=args.seed)
            sys.stdout.write(f'{printable(path)}\n')
        elif argv[:1] == ['report']:
            sys.stdout.write(f'{printable(write_run_report(Path(build_report_parser().parse_args(argv[1:]).run)))}\n')
        else:
            evaluate_checkpoint(build_parser().parse_args(argv))
    except (ValueError, OSError) as e:
        sys.stderr.write(f'timm_lt.evaluate: error: {e}\n')
        return 2
    return 0


def evaluate_checkpoint(args: argparse.Namespace) -> dict[str, Any]:
    """Evaluate what the options name, write the folder of the report, and return the metrics.

    Raises:
        EvaluationError: If checkpoint, class sizes and data do not fit one another.
    """
    check_open_set_options(args)
    network = load_network(
        args.checkpoint, architecture=args.model, num_classes=args.num_classes, device=args.device)
    distribution = find_distribution(args.class_stats, network)
    data = Data(args, network, distribution)
    split, dataset = data.tested()
    needs_features = bool(args.open_set) and 'prototype' in args.open_set_score
    logits, targets, features = data.collect(dataset, f'split {split}', needs_features or args.landscape)

    posthoc = None if args.no_posthoc else network.posthoc
    metrics = report(
        logits, targets, distribution, split_rule=args.split_rule, class_names=data.class_names, posthoc=posthoc,
        bootstrap=args.bootstrap, seed=args.seed)
    metrics |= {
        'model': network.name,
        'num_parameters': network.num_parameters,
        'seed': network.recipe.get('seed'),
        'weight_norms': _weight_norms(network),
        'protocol': {
            'checkpoint': network.source,
            'dataset': args.dataset or str(args.data_dir),
            'test_part': f'split {split!r}',
            'class_names': data.names_note,
            'class_sizes_from': args.class_stats or 'the checkpoint',
            'epoch_chosen_by': (network.metrics.get('protocol') or {}).get('epoch_chosen_by', 'not known'),
            **_correction_protocol(network, posthoc),
            'bootstrap_seed': args.seed,
        },
    }
    if args.open_set:
        metrics['open_set'] = open_set(
            args, data, (split, dataset), posthoc, distribution, metrics['split_rule'], logits, targets, features)
    if args.landscape:
        metrics['landscape'] = _landscape(args, data, dataset, distribution, metrics['split_rule'], logits, features)
        metrics['protocol']['landscape'] = f'{args.landscape_images} images of each split of part {split!r}, ' \
                                           f'cross-entropy, evaluation mode'
    shown = logits if posthoc is None else posthoc(logits)
    folder = Path(args.output or Path('evaluation') / _folder_name(args.checkpoint))
    _write(folder, metrics, shown, targets, distribution, network.recipe)
    sys.stdout.write(summary(metrics, write_report(folder)))
    return metrics


def find_distribution(class_stats: str | None, network: Network) -> ClassDistribution:
    """Training class sizes from the file, else from the checkpoint.

    Raises:
        EvaluationError: If neither has them, or they are of another number of classes.
    """
    if class_stats is None:
        if network.distribution is None:
            raise EvaluationError(
                f'the class sizes of the training images of {network.source!r} are not known; pass --class-stats FILE, '
                f"a JSON file with 'pos_counts' and 'num_samples' as timm writes it")
        distribution = network.distribution
    else:
        if not Path(class_stats).is_file():
            raise EvaluationError(f'there is no class-stats file {class_stats}')
        try:
            distribution = ClassDistribution.from_json(class_stats)
        except (TypeError, ValueError) as e:
            named = str(e) if str(class_stats) in str(e) else f'class-stats file {class_stats}: {e}'
            raise EvaluationError(named) from e
    if distribution.num_classes != network.num_classes:
        raise EvaluationError(
            f'the class sizes are of {distribution.num_classes} classes, but the network has {network.num_classes}')
    return distribution


def _correction_protocol(network: Network, posthoc: Any) -> dict[str, str]:
    if posthoc is None:
        return {}
    fitted_on = (network.metrics.get('corrected') or {}).get('fitted_on', 'not known')
    chosen = 'nothing: as given'
    if posthoc.method == 'temperature':
        chosen = 'negative log-likelihood of the validation part'
    elif posthoc.metric is not None:
        chosen = f'{posthoc.metric} of the validation part, {100 * posthoc.score:.2f}% there'
    return {'correction_fitted_on': fitted_on, 'correction_strength_chosen_by': chosen}


def _landscape(
        args: argparse.Namespace,
        data: Data,
        dataset: Any,
        distribution: ClassDistribution,
        rule: str,
        logits: Tensor,
        features: Tensor | None,
) -> dict[str, Any]:
    from ..gkp import class_gradient_cosine, feature_quality
    from .landscape import measure_landscape
    targets = dataset.targets
    splits = distribution.splits(rule)
    generator = torch.Generator().manual_seed(args.seed)
    chosen = []
    for mask in splits.values():
        index = mask[targets].nonzero().flatten()
        chosen.append(index[torch.randperm(len(index), generator=generator)[:args.landscape_images]])
    batches = [(x.cpu(), y.cpu()) for x, y in data.loader(ImageSubset(dataset, torch.cat(chosen).tolist()))]
    result = measure_landscape(
        data.network.model, batches, distribution, split_rule=rule, rho=args.rho, seed=args.seed)
    quality = feature_quality(features, targets, distribution.num_classes)
    result['feature_quality'] = {name: quality.mean(mask) for name, mask in splits.items()}
    residuals = logits.softmax(1) - torch.nn.functional.one_hot(targets, distribution.num_classes)
    cosine = class_gradient_cosine(features, residuals, targets, distribution.num_classes)
    tested = torch.bincount(targets, minlength=distribution.num_classes) > 0
    result['class_gradient_cosine'] = {one: {
        two: _mean_between(cosine, splits[one] & tested, splits[two] & tested) for two in SPLIT_NAMES}
        for one in SPLIT_NAMES}
    return result


def _mean_between(cosine: Tensor, rows: Tensor, columns: Tensor) -> float | None:
    """Mean cosine of pairs of different classes."""
    pairs = rows[:, None] & columns & ~torch.eye(len(cosine), dtype=torch.bool)
    return float(cosine[pairs].mean()) if bool(pairs.any()) else None


def _weight_norms(network: Network) -> list[float] | None:
    try:
        weight = getattr(classifier_of(network.model), 'weight', None)
    except EvaluationError:
        return None
    if weight is None or weight.shape[0] != network.num_classes or not bool(weight.isfinite().all()):
        return None
    return weight.detach().float().flatten(1).norm(dim=1).tolist()


def _write(
        folder: Path,
        metrics: dict[str, Any],
        logits: Tensor,
        targets: Tensor,
        distribution: ClassDistribution,
        recipe: dict[str, Any],
) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    with whole_file(folder / 'predictions.npz') as temporary, open(temporary, 'wb') as f:
        np.savez_compressed(f, logits=logits.float().numpy(), targets=targets.numpy())
    distribution.to_json(folder / 'class_distribution.json')
    if recipe:
        write_text(folder / 'args.yaml', yaml.safe_dump(recipe, sort_keys=False))
    from ..training.outputs import json_ready
    write_text(folder / 'metrics.json', json.dumps(json_ready(metrics), indent=1, allow_nan=False) + '\n')


def summary(metrics: dict[str, Any], page: Path) -> str:
    """The closing lines on the terminal."""
    names = ('top1', 'top5', 'balanced_accuracy', *SPLIT_NAMES, 'worst_class', 'harmonic_mean', 'geometric_mean',
             'macro_f1', 'ece', *(f'ece_{n}' for n in SPLIT_NAMES))
    rows = []
    for name in names:
        value, interval = metrics[name], (metrics['confidence'] or {}).get(name)
        shown = 'absent' if value is None else f'{value:6.2f}'
        rows.append(f'{name.replace("_", " "):18s}{shown}' + (
            f'   95%: {interval[0]:.2f} to {interval[1]:.2f}' if interval else ''))
    for found in metrics.get('open_set', []):
        after = ', '.join('absent' if found[k] is None else f'{found[k]:.1f}' for k in ('top1', *SPLIT_NAMES))
        rows.append(
            f'open set, {found["score"]}: F (OLTR) {found["f_measure_oltr"]:.3f}, F (rejected known not counted) '
            f'{found["f_measure_without_rejected"]:.3f}, AUROC {found["auroc"]:.1f}, FPR@95 {found["fpr95"]:.1f}, '
            f'OSCR {found["oscr"]:.1f}; top-1, many, medium, few after rejection: {after}')
    if metrics['non_finite']:
        rows.append(f'{metrics["non_finite"]} images have scores that are NaN or infinite; they count as wrong')
    rows.append(
        f'percent; {metrics["num_images"]} images, {metrics["protocol"]["test_part"]}; split rule '
        f'{metrics["split_rule"]}; {metrics["model"]}, {metrics["num_parameters"]:,} parameters'
        + (f'; post hoc: {metrics["posthoc"]}' if metrics['posthoc'] else ''))
    return '\n'.join([*map(printable, rows), f'report: {printable(page)}', ''])


def _folder_name(checkpoint: str) -> str:
    path = Path(checkpoint.partition(':')[2] or checkpoint)
    name = path.parent.name if path.name == 'hub' and path.parent.name else path.name
    return re.sub(r'[^\w.-]+', '_', name) or 'checkpoint'

"""``python -m timm_lt.evaluate``: report of one checkpoint; ``python -m timm_lt.evaluate compare``: of several runs."""

import argparse
import json
import os
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
from ..class_distribution import SPLIT_NAMES, ClassDistribution
from .html_comparison import write_comparison
from .html_report import write_report
from .metrics import report
from .network import EvaluationError, Network, classifier_of, collect, load_network
from .openset import SCORES, UNKNOWN, choose_threshold, class_prototypes, open_set_report, open_set_scores


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='python -m timm_lt.evaluate', description='Evaluate a checkpoint on a long-tailed data set.',
        epilog="'python -m timm_lt.evaluate compare RUN_DIR RUN_DIR ...' compares runs; the first is the baseline.")
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


def main(argv: Sequence[str] | None = None) -> int:
    """Returns the exit status; 2 for what the user can mend, in one sentence."""
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        if argv[:1] == ['compare']:
            args = build_compare_parser().parse_args(argv[1:])
            path = write_comparison(args.runs, args.output, bootstrap=args.bootstrap, seed=args.seed)
            sys.stdout.write(f'{path}\n')
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
    _check_open_set_options(args)
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
        metrics['open_set'] = _open_set(
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


class Data:
    """The parts of the data set that an evaluation reads.

    Args:
        args: Options.
        network: Decides input size, normalisation, number and names of classes.
        distribution: Training class sizes.
    """

    def __init__(self, args: argparse.Namespace, network: Network, distribution: ClassDistribution) -> None:
        self.args, self.network = args, network
        self.class_names = network.class_names or distribution.class_names
        self.names_note: str | None = None

    def tested(self) -> tuple[str, Any]:
        """Name and images of the part to evaluate."""
        from ..data import find_split
        args = self.args
        if not args.dataset and not args.data_dir:
            raise EvaluationError(
                'no data to evaluate: name a data set by --dataset, or a folder of class folders by --data-dir')
        _check_root(args.dataset, args.data_dir, '--data-dir')
        split = args.split or find_split(args.dataset, args.data_dir, ('test', 'validation'))
        if split is None:
            raise EvaluationError('the data have no test or validation part; name the part to evaluate by --split')
        return split, self.known(split)

    def for_threshold(self, tested: tuple[str, Any]) -> tuple[str, Any]:
        """Name and images of the part that sets the threshold; none of them is an image of the tested part."""
        from ..data import find_split
        split = self.args.threshold_split or find_split(self.args.dataset, self.args.data_dir, ('validation',))
        if split is not None:
            part = split, self.known(split)
            if not self.share_images(part, tested):
                return part
        if self.args.threshold_split is None:
            return 'train', self.apart('the threshold cannot be chosen', 'train', tested)
        return split, self.apart('the threshold cannot be chosen', split, tested)

    def apart(self, what: str, split: str, tested: tuple[str, Any]) -> Any:
        """Images of a part, which must hold no image of the tested part."""
        part = split, self.known(split)
        if self.share_images(part, tested):
            a_list = self.args.dataset.startswith('list/')
            hint = ' (a list is one for each part only if its name holds {split})' if a_list else ''
            raise EvaluationError(
                f'{what} on {split!r}, which holds images of {tested[0]!r}, the part that is tested; name another part '
                f'by --threshold-split, or test another by --split{hint}')
        return part[1]

    def share_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        """Whether two parts hold an image in common: by the names of their files, else by the parts' names."""
        from ..data.factory import DIGITS, numbers_its_own_classes
        name = self.args.dataset
        if numbers_its_own_classes(name):
            return not _files(one[1]).isdisjoint(_files(two[1]))
        first, second = _usual_name(one[0]), _usual_name(two[0])
        if name == DIGITS or name.startswith('torch/'):  # two parts: every name but that of training is the other one
            return (first == 'train') == (second == 'train')
        return first == second

    def known(self, split: str) -> Any:
        """Images of a part, with the classes of the network."""
        from ..data import get_class_names
        from ..data.factory import numbers_its_own_classes
        name = self.args.dataset
        own = numbers_its_own_classes(name)
        options = {'class_names': self.class_names} if own and self.class_names else {}
        dataset = self._create(name, self.args.data_dir, split, **options)
        names, classes = get_class_names(dataset), self.network.num_classes
        found = max(len(names) if names else 0, int(dataset.targets.max()) + 1)
        if found > classes or (names and len(names) != classes):
            raise EvaluationError(f'{name or self.args.data_dir} has {found} classes, but the network has {classes}')
        if names and self.class_names and not own and list(names) != list(self.class_names):
            c = next(c for c in range(classes) if names[c] != self.class_names[c])
            differ = f'class {c} is {names[c]!r} in the data set and {self.class_names[c]!r} in the checkpoint'
            if not self.args.ignore_class_names:
                raise EvaluationError(
                    f'{name} has other classes than the checkpoint: {differ}; if only the names differ, pass '
                    f'--ignore-class-names')
            self.names_note = f'not compared: {differ}; labels are used as they are'
        return dataset

    def unknown(self) -> Any:
        """Images of unknown classes."""
        from ..data import find_split
        args = self.args
        _check_root(args.open_set, args.open_set_dir, '--open-set-dir')
        split = args.open_set_split or find_split(args.open_set, args.open_set_dir, ('test', 'validation', 'train'))
        return self._create(args.open_set, args.open_set_dir, split or 'train')

    @staticmethod
    def _create(name: str, root: str | None, split: str, **options: Any) -> Any:
        from ..data import create_dataset
        try:
            return create_dataset(name, root, split, **options)
        except TypeError as e:  # a dataset that only streams
            raise EvaluationError(str(e)) from e

    def loader(self, dataset: Any) -> Any:
        from timm.data import resolve_data_config

        from ..data import create_eval_loader, eval_transform
        config = resolve_data_config({}, model=self.network.model)
        transform = eval_transform(
            config['input_size'], config['interpolation'], config['crop_pct'], config['crop_mode'])
        return create_eval_loader(
            dataset, config['mean'], config['std'], self.args.batch_size, transform=transform,
            device=self.args.device, workers=self.args.workers)

    def collect(self, dataset: Any, label: str, with_features: bool = False) -> tuple[Tensor, Tensor, Tensor | None]:
        return collect(self.network.model, self.loader(dataset), with_features=with_features, progress=label)


def _open_set(
        args: argparse.Namespace,
        data: Data,
        tested: tuple[str, Any],
        posthoc: Any,
        distribution: ClassDistribution,
        rule: str,
        logits: Tensor,
        targets: Tensor,
        features: Tensor | None,
) -> list[dict[str, Any]]:
    """Reports of the scores; predictions are corrected as in the closed set, scores are those of the plain logits."""
    prototype = 'prototype' in args.open_set_score
    part, known = data.for_threshold(tested)
    val_logits, val_targets, val_features = data.collect(known, f'split {part}', prototype)
    unknown_logits, _, unknown_features = data.collect(data.unknown(), 'unknown classes', prototype)
    prototypes = None
    if prototype:
        train = (val_features, val_targets)
        if _usual_name(part) != 'train':
            images = data.apart('prototypes cannot be taken', 'train', tested)
            _, train_targets, train_features = data.collect(images, 'prototypes', True)
            train = (train_features, train_targets)
        prototypes = class_prototypes(*train, data.network.num_classes)
        features = torch.cat([features, unknown_features])
    labels = torch.cat([targets, torch.full((len(unknown_logits),), UNKNOWN)])
    # a transductive correction would read known and unknown images together; the plain logits decide then
    everything = torch.cat([logits, unknown_logits])
    made_by, corrected = 'as trained', everything
    if posthoc is not None and getattr(posthoc, 'transductive', False):
        made_by = f'as trained; the correction ({posthoc.label}) reads all test images together and is left out'
    elif posthoc is not None:
        made_by, corrected = f'corrected by {posthoc.label}', posthoc(everything)
    predictions = corrected.argmax(1)
    results = []
    for score in args.open_set_score:
        def scores(z: Tensor, f: Tensor | None, score: str = score) -> Tensor:
            return open_set_scores(z, score=score, features=f, prototypes=prototypes)

        chosen = choose_threshold(scores(val_logits, val_features))
        chosen['rule'] = f'keeps 95% of the images of part {part!r}; no unknown image seen' + (
            '; training images, whose scores are higher than those of new ones' if _usual_name(part) == 'train' else '')
        found = open_set_report(
            scores(everything, features), predictions, labels, threshold=chosen, score=score,
            class_counts=distribution, split_rule=rule)
        results.append({**found, 'unknown': args.open_set, 'predictions': made_by})
    return results


def _check_open_set_options(args: argparse.Namespace) -> None:
    if not args.open_set:
        for name in ('open_set_dir', 'open_set_split', 'open_set_score', 'threshold_split'):
            if getattr(args, name):
                raise EvaluationError(
                    f'--{name.replace("_", "-")} is of --open-set NAME, which is not given; for a folder of images: '
                    f'--open-set folder')
    args.open_set_score = args.open_set_score or ['softmax', 'energy']


def _check_root(name: str, root: str | None, option: str) -> None:
    """Refuse a missing folder before the data set looks for its parts there."""
    from ..data.factory import numbers_its_own_classes
    stored = numbers_its_own_classes(name) or name.startswith('torch/')
    if stored and root is None:
        raise EvaluationError(f'data set {name!r} needs the folder of its images: {option} DIR')
    if stored and not Path(root).is_dir():
        raise EvaluationError(f'there is no folder {root} ({option})')


def _usual_name(split: str) -> str:
    from ..data.factory import SPLIT_NAMES as ALIASES
    return next((part for part, names in ALIASES.items() if split in names), split)


def _files(dataset: Any) -> set[str]:
    return {os.path.realpath(dataset.filename(i, absolute=True)) for i in range(len(dataset))}


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
    from ..data import ImageSubset
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
    return '\n'.join([*rows, f'report: {page}', ''])


def _folder_name(checkpoint: str) -> str:
    path = Path(checkpoint.partition(':')[2] or checkpoint)
    name = path.parent.name if path.name == 'hub' and path.parent.name else path.name
    return re.sub(r'[^\w.-]+', '_', name) or 'checkpoint'

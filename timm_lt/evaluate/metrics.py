"""Closed-set figures of a long-tailed test: accuracies by class size, calibration, confidence intervals.

Papers: Z. Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (many, medium, few);
C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Eq. (3) (ECE).
Source: written from the papers; ECE by torchmetrics.
Differs from the official code: a split without a class, or without a test image, is None; published code prints 0 or
NaN. As there, a split's figure is the mean of the accuracies of those of its classes that have test images.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .._validate import check_class_counts, check_range
from ..class_distribution import SPLIT_NAMES, ClassDistribution

CHUNK_ELEMENTS = 1 << 20  # logits looked at in one go: bounds the working memory, whatever the size of the test set
ECE_BINS = 15
LEVEL = 0.95  # of confidence intervals
MERGED = (
    'top1', 'top5', 'balanced_accuracy', 'many', 'medium', 'few', 'worst_class', 'harmonic_mean', 'geometric_mean',
    'macro_f1', 'ece', 'ece_many', 'ece_medium', 'ece_few',
)


def report(
        logits: Any,
        targets: Any,
        class_counts: Any,
        *,
        split_rule: str = 'gt100_lt20',
        class_names: Sequence[str] | None = None,
        posthoc: Callable[[Tensor], Tensor] | None = None,
        bootstrap: int = 0,
        seed: int = 0,
) -> dict[str, Any]:
    """Figures of one test, ready for JSON. Accuracies and ECE are in percent, in [0, 100].

    Args:
        logits: Scores of the test images, (N, C), any float dtype, on any device.
        targets: True classes, (N,), whole numbers in [0, C).
        class_counts: Training images per class, (C,), or a :class:`ClassDistribution`; they define the splits.
        split_rule: A rule of :meth:`ClassDistribution.splits`, or ``'auto'``: ``gt100_lt20``, and thirds of the classes
            where none has fewer than 20 images. The rule that was used stands in the result.
        class_names: Names, (C,); None takes those of the distribution.
        posthoc: Changes the logits first, e.g. a :class:`timm_lt.posthoc.PostHoc` or a partial of a function there; its
            name is noted, and whether it is transductive.
        bootstrap: Resamples of the test images for confidence intervals; 0 gives none.
        seed: Of the bootstrap.

    Returns:
        ``top1``, ``top5`` (100 for up to five classes), ``balanced_accuracy`` (mean of the per-class accuracies),
        ``many``, ``medium``, ``few`` (the same mean over a split; None if the split has no class or no test image),
        ``per_class`` (C entries, None without a test image), ``worst_class`` (its accuracy),
        ``worst_class_index``, ``worst_class_name``,
        ``harmonic_mean``, ``geometric_mean`` (of the per-class accuracies), ``macro_f1`` (over the classes that occur
        among targets or predictions), ``ece``, ``ece_many``, ``ece_medium``, ``ece_few`` (15 bins), ``split_confusion``
        (percent of a split's images predicted as a class of each split), ``split_rule``, ``splits`` (classes, classes
        with test images, test images of each), ``num_images``, ``num_classes``, ``test_images_per_class``,
        ``train_images_per_class``, ``non_finite`` (images with a NaN or infinite score: they count as wrong),
        ``posthoc``, ``transductive``, ``confidence`` (None or the intervals).

    Raises:
        ValueError: If shapes disagree, a target is outside [0, C), or there is no test image.
    """
    logits, targets = check_predictions(logits, targets)
    num_classes = logits.shape[1]
    names = class_names if class_names is not None else getattr(class_counts, 'class_names', None)
    distribution = ClassDistribution(
        check_class_counts(class_counts, num_classes, min_count=0, who='report'), names)
    split_rule = resolve_split_rule(distribution, split_rule)
    splits = distribution.splits(split_rule)
    if posthoc is not None:
        logits = posthoc(logits)

    outcome = predict(logits, targets)
    targets = targets.cpu()
    rank, predicted, confidence = outcome['rank'], outcome['predicted'], outcome['confidence']
    right = rank == 0
    support = torch.bincount(targets, minlength=num_classes)
    hits = torch.bincount(targets[right], minlength=num_classes)
    tested = support > 0
    per_class = 100.0 * hits.double() / support
    accuracies = per_class[tested]
    worst = int(torch.where(tested, per_class, torch.inf).argmin())

    result: dict[str, Any] = {
        'top1': 100.0 * int(right.sum()) / len(targets),
        'top5': 100.0 * int((rank < 5).sum()) / len(targets),
        'balanced_accuracy': float(accuracies.mean()),
    }
    for name in SPLIT_NAMES:
        result[name] = _mean(per_class[splits[name] & tested])
    result.update(
        per_class=[float(a) if t else None for a, t in zip(per_class, tested)],
        worst_class=float(per_class[worst]),
        worst_class_index=worst,
        worst_class_name=distribution.class_names[worst] if distribution.class_names else None,
        harmonic_mean=float(len(accuracies) / (1 / accuracies).sum()),  # 1 / 0 = inf: one lost class makes it 0
        geometric_mean=float(accuracies.log().mean().exp()),
        macro_f1=_macro_f1(hits, support, predicted),
        ece=expected_calibration_error(confidence, right),
    )
    split_of_class = torch.stack([splits[name] for name in SPLIT_NAMES]).int().argmax(0)
    split_of_image = split_of_class[targets]
    for k, name in enumerate(SPLIT_NAMES):
        result[f'ece_{name}'] = expected_calibration_error(confidence[split_of_image == k], right[split_of_image == k])
    result.update(
        split_confusion=_split_confusion(split_of_class, split_of_image, predicted),
        split_rule=split_rule,
        splits={name: {
            'classes': int(mask.sum()),
            'tested_classes': int((mask & tested).sum()),
            'images': int(support[mask].sum()),
        } for name, mask in splits.items()},
        num_images=len(targets),
        num_classes=num_classes,
        test_images_per_class=support.tolist(),
        train_images_per_class=distribution.counts.tolist(),
        non_finite=int((predicted < 0).sum()),
        posthoc=None if posthoc is None else _name_of(posthoc),
        transductive=_is_transductive(posthoc),
        confidence=None,
    )
    if bootstrap:
        check_range('bootstrap', bootstrap, 1)
        result['confidence'] = _bootstrap(targets, rank, splits, num_classes, bootstrap, seed)
    return result


def check_predictions(logits: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and int64 targets (N,) as tensors, or a ValueError that says what is wrong."""
    logits, targets = torch.as_tensor(logits).detach(), torch.as_tensor(targets).detach()
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f'logits must be floats of shape (N, C), got {logits.dtype} of shape {tuple(logits.shape)}')
    if targets.is_floating_point() or targets.shape != logits.shape[:1]:
        raise ValueError(
            f'targets must be whole numbers of shape ({logits.shape[0]},), '
            f'got {targets.dtype} of shape {tuple(targets.shape)}')
    if len(targets) == 0:
        raise ValueError('there is no test image: logits and targets are empty')
    targets = targets.long()
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f'targets must be in [0, {logits.shape[1] - 1}], the columns of the logits, '
            f'got targets from {low} to {high}; does the dataset have the classes of the model?')
    return logits, targets


def resolve_split_rule(distribution: ClassDistribution, rule: str) -> str:
    """The rule that ``'auto'`` stands for; any other rule as it is."""
    if rule != 'auto':
        return rule
    return 'gt100_lt20' if bool((distribution.counts < 20).any()) else 'thirds'


@torch.no_grad()
def predict(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """What the figures need of each image, on the CPU, computed in blocks of rows.

    Returns:
        ``predicted`` (N,), -1 where a score is NaN or +inf; ``rank`` (N,), the place of the true class, 0 the highest
        score, ties in favour of the lower class number; ``confidence`` (N,), the largest softmax value.
    """
    num_images, num_classes = logits.shape
    rows = max(1, CHUNK_ELEMENTS // num_classes)
    targets = targets.to(logits.device)
    column = torch.arange(num_classes, device=logits.device)
    wide = logits.dtype == torch.float64
    # filled in place: lists of small results between large temporaries fragment the heap
    predicted, rank = torch.empty_like(targets), torch.empty_like(targets)
    confidence = torch.empty(num_images, dtype=torch.float64 if wide else torch.float32, device=logits.device)
    for start in range(0, num_images, rows):
        block = slice(start, start + rows)
        z = logits[block] if wide else logits[block].float()
        y = targets[block, None]
        own = z.gather(1, y)
        top, best = z.max(1)
        place = (z > own).sum(1) + ((z == own) & (column < y)).sum(1)
        broken = ~torch.isfinite(top)  # max gives NaN if any entry is, so a NaN anywhere in the row is seen
        predicted[block] = best.masked_fill(broken, -1)
        rank[block] = place.masked_fill(broken, num_classes + 5)
        confidence[block] = (top - z.logsumexp(1)).exp()
    return {'predicted': predicted.cpu(), 'rank': rank.cpu(), 'confidence': confidence.cpu()}


def expected_calibration_error(confidence: Tensor, right: Tensor, num_bins: int = ECE_BINS) -> float | None:
    """ECE in percent over equal-width bins; None without an image or with a confidence that is not finite.

    Args:
        confidence: Probability of the predicted class, (N,).
        right: Whether the prediction is right, (N,), bool.
        num_bins: Number of bins.
    """
    if confidence.numel() == 0 or not bool(torch.isfinite(confidence).all()):
        return None
    from torchmetrics.functional.classification import multiclass_calibration_error
    # ECE depends on (confidence, right) alone: two columns stand for the C columns of probabilities
    columns = torch.stack([confidence.double().clamp(max=1), torch.zeros_like(confidence, dtype=torch.float64)], 1)
    error = multiclass_calibration_error(columns, (~right).long(), 2, n_bins=num_bins, norm='l1', validate_args=False)
    return 100.0 * float(error)


def gather_predictions(
        logits: Tensor | Sequence[Tensor],
        targets: Tensor | Sequence[Tensor],
        accelerator: Any = None,
        *,
        num_valid: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and targets of all processes, on the CPU, with one gather at the end.

    Each process keeps what its batches gave in a list on the device; nothing is synchronised per batch. Processes may
    hold different numbers of images. All processes must call this, and all receive the result.

    Args:
        logits: This process's logits, (n, C), or a list of them.
        targets: This process's targets, (n,), or a list of them.
        accelerator: accelerate's ``Accelerator``; None for one process.
        num_valid: Real images of this process; what follows them is padding of the sampler and is dropped (timm's
            ``evaluation_sample_limit(loader)``).

    Returns:
        Logits (N, C) and targets (N,), ordered by process.
    """
    logits = logits if isinstance(logits, Tensor) else torch.cat(list(logits))
    targets = targets if isinstance(targets, Tensor) else torch.cat(list(targets))
    if num_valid is not None:
        logits, targets = logits[:num_valid], targets[:num_valid]
    logits, targets = logits.detach(), targets.detach()
    if accelerator is None or accelerator.num_processes == 1:
        return logits.cpu(), targets.cpu()
    length = torch.tensor([len(targets)], device=targets.device)
    lengths = accelerator.gather(length).tolist()
    longest = max(lengths)
    if len(targets) < longest:
        pad = longest - len(targets)
        logits = torch.cat([logits, logits.new_zeros(pad, logits.shape[1])])
        targets = torch.cat([targets, targets.new_zeros(pad)])
    logits, targets = accelerator.gather(logits.contiguous()).cpu(), accelerator.gather(targets.contiguous()).cpu()
    if min(lengths) == longest:
        return logits, targets
    keep = torch.cat([torch.arange(n) + k * longest for k, n in enumerate(lengths)])
    return logits[keep], targets[keep]


def merge_seeds(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Mean and standard deviation of the figures of several seeds.

    Args:
        reports: Results of :func:`report` (or ``metrics.json`` contents, whose ``seed`` is noted) of one recipe.

    Returns:
        ``num_seeds``, ``seeds``, ``split_rule``, ``mean`` and ``std`` (figure to value; the deviation divides by n - 1
        and is None for one seed; a figure that a report lacks is None), ``per_class_mean``.

    Raises:
        ValueError: If there is no report, a seed stands twice, or they differ in split rule, number of classes or test
            images, or in the method of the correction.
    """
    reports = list(reports)
    if not reports:
        raise ValueError('merge_seeds needs at least one report')
    shared = {key: [r.get(key) for r in reports] for key in ('split_rule', 'num_classes', 'num_images')}
    shared['transductive'] = [bool(r.get('transductive')) for r in reports]
    shared['posthoc'] = [correction_method(r) for r in reports]
    for key, values in shared.items():
        if len(set(values)) > 1:
            raise ValueError(f'reports to merge must share {key}, got {sorted(set(map(str, values)))}')
    seeds = [r.get('seed') for r in reports]
    if twice := [s for s in seeds if s is not None and seeds.count(s) > 1]:
        raise ValueError(f'seed {twice[0]} stands {seeds.count(twice[0])} times; merge one report of each seed')
    mean: dict[str, float | None] = {}
    std: dict[str, float | None] = {}
    for key in MERGED:
        values = [r.get(key) for r in reports]
        known = all(v is not None for v in values)
        mean[key] = float(np.mean(values)) if known else None
        std[key] = float(np.std(values, ddof=1)) if known and len(values) > 1 else None
    columns = zip(*(r['per_class'] for r in reports))
    return {
        'num_seeds': len(reports),
        'seeds': seeds,
        'split_rule': reports[0].get('split_rule'),
        'mean': mean,
        'std': std,
        'per_class_mean': [None if None in column else float(np.mean(column)) for column in columns],
    }


def correction_method(result: Mapping[str, Any]) -> str | None:
    """Method of the correction behind the figures; each seed may have chosen its own strength."""
    return result['posthoc'].split(',')[0] if result.get('posthoc') else None


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if values.numel() else None


def _macro_f1(hits: Tensor, support: Tensor, predicted: Tensor) -> float:
    both = support + torch.bincount(predicted[predicted >= 0], minlength=len(support))
    occurs = both > 0
    return float(200.0 * (hits[occurs] / both[occurs].double()).mean())


def _split_confusion(split_of_class: Tensor, split_of_image: Tensor, predicted: Tensor) -> dict[str, Any]:
    kept = predicted >= 0
    cells = torch.bincount(3 * split_of_image[kept] + split_of_class[predicted[kept]], minlength=9).reshape(3, 3)
    share = (100.0 * cells.double() / torch.bincount(split_of_image, minlength=3)[:, None]).tolist()
    return {
        true: {p: None if math.isnan(v) else v for p, v in zip(SPLIT_NAMES, row)}
        for true, row in zip(SPLIT_NAMES, share)
    }


def _is_transductive(posthoc: Any) -> bool:
    function, options = getattr(posthoc, 'func', posthoc), getattr(posthoc, 'keywords', {})
    if getattr(function, '__name__', '') == 'rebalance_predictions':  # reads the test images unless it has a reference
        return options.get('reference') is None
    return bool(getattr(function, 'transductive', False))


def _name_of(function: Any) -> str:
    if hasattr(function, 'label'):
        return str(function.label)
    options = ', '.join(f'{k}={v}' for k, v in getattr(function, 'keywords', {}).items() if not isinstance(v, Tensor))
    function = getattr(function, 'func', function)
    name = getattr(function, '__name__', type(function).__name__)
    return f'{name}({options})' if options else name


def _bootstrap(
        targets: Tensor,
        rank: Tensor,
        splits: Mapping[str, Tensor],
        num_classes: int,
        resamples: int,
        seed: int,
) -> dict[str, Any]:
    # Drawing N images with replacement is one multinomial draw over the cells (class, right / top-5 / wrong).
    outcome = torch.where(rank == 0, 0, torch.where(rank < 5, 1, 2))
    cells = torch.bincount(3 * targets + outcome, minlength=3 * num_classes)
    drawn = draw_cells(cells, resamples, seed).reshape(resamples, num_classes, 3)
    images = drawn.sum(-1)
    intervals = {
        'top1': interval(100.0 * drawn[..., 0].sum(1) / len(targets)),
        'top5': interval(100.0 * drawn[..., :2].sum((1, 2)) / len(targets)),
        'balanced_accuracy': interval(class_means(drawn[..., 0], images)),
    }
    for name in SPLIT_NAMES:
        mask = splits[name].numpy()
        intervals[name] = interval(class_means(drawn[:, mask, 0], images[:, mask]))
    return {'level': LEVEL, 'resamples': resamples, 'seed': seed, **intervals}


def draw_cells(cells: Tensor, resamples: int, seed: int) -> np.ndarray:
    """Bootstrap counts of the cells, (resamples, cells)."""
    total = int(cells.sum())
    return np.random.default_rng(seed).multinomial(total, cells.double().numpy() / total, size=resamples)


def class_means(hits: np.ndarray, images: np.ndarray) -> np.ndarray:
    """Mean of the per-class accuracies in percent of each resample, over the classes that it drew."""
    drawn = images > 0
    accuracy = np.divide(hits, images, out=np.zeros(hits.shape), where=drawn)
    classes = drawn.sum(1)
    return np.divide(100.0 * accuracy.sum(1), classes, out=np.full(len(hits), np.nan), where=classes > 0)


def interval(values: np.ndarray) -> list[float] | None:
    """Percentile interval; None if nothing could be drawn."""
    values = values[~np.isnan(values)]
    if values.size == 0:
        return None
    tail = 50.0 * (1 - LEVEL)
    return [float(v) for v in np.percentile(values, [tail, 100 - tail])]

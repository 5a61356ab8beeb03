"""Closed-set metrics of a long-tailed test: accuracies by class size, F1, calibration, confidence intervals.

Papers: Z. Liu et al., "Large-Scale Long-Tailed Recognition in an Open World", CVPR 2019 (many, medium, few);
C. Guo et al., "On Calibration of Modern Neural Networks", ICML 2017, Eq. (3) (ECE).
Source: written from the papers.
Differs from the official code: a split without a class, or without a test image, is None; published code prints 0 or
NaN. As there, a split's metric is the mean of the accuracies of those of its classes that have test images.

Ties and scores that are not finite follow one rule, see :mod:`timm_lt.evaluate.metrics.predictions`.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..._validate import check_class_counts, check_range
from ...class_distribution import SPLIT_NAMES, ClassDistribution
from .calibration import expected_calibration_error
from .intervals import accuracy_intervals
from .predictions import check_predictions, finite_rows, predict


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
    """Metrics of one test, ready for JSON. Accuracies, precision, recall, F1 and ECE are in percent, in [0, 100].

    Args:
        logits: Scores of the test images, (N, C), any float dtype, on any device.
        targets: True classes, (N,), whole numbers in [0, C).
        class_counts: Training images per class, (C,), or a :class:`ClassDistribution`; they define the splits.
        split_rule: A rule of :meth:`ClassDistribution.splits`, or ``'auto'``, see :func:`resolve_split_rule`.
        class_names: Names, (C,); None takes those of the distribution.
        posthoc: Changes the logits first, e.g. a :class:`timm_lt.posthoc.PostHoc` or a partial of a function there. The
            report notes its name, and whether it is transductive. It sees the finite images alone.
        bootstrap: Resamples of the test images for confidence intervals; 0 gives none.
        seed: Of the bootstrap.

    Returns:
        A dictionary with

        - ``top1``, ``top5`` (100 for up to five classes), ``balanced_accuracy`` (mean of the per-class accuracies);
        - ``many``, ``medium``, ``few``: the same mean over a split, None without a class or a test image of it;
        - ``per_class`` (the recalls), ``precision_per_class``, ``f1_per_class``: C entries, None where undefined;
        - ``worst_class`` (lowest accuracy), ``num_worst_classes``, ``worst_class_index``, ``worst_class_name`` (first);
        - ``harmonic_mean``, ``geometric_mean``: of the per-class accuracies;
        - ``macro_f1``: over the classes that occur among targets or predictions;
        - ``ece``, ``ece_many``, ``ece_medium``, ``ece_few``: of 15 bins, None where an image is not finite;
        - ``split_confusion``: percent of a split's images predicted as a class of each split;
        - ``split_rule``, ``splits`` (of each: classes, classes with test images, test images);
        - ``num_images``, ``num_classes``, ``test_images_per_class``, ``predicted_images_per_class``,
          ``train_images_per_class``;
        - ``non_finite``: images with a NaN or ``+inf`` score, or of ``-inf`` alone, which count as wrong;
        - ``posthoc``, ``transductive``, ``confidence`` (None or the intervals).

    Raises:
        ValueError: If shapes disagree, a target is outside [0, C), or there is no test image.
    """
    logits, targets = check_predictions(logits, targets)
    counts = check_class_counts(class_counts, logits.shape[1], min_count=0, who='report')
    names = getattr(class_counts, 'class_names', None) if class_names is None else class_names
    distribution = ClassDistribution(counts, names)
    split_rule = resolve_split_rule(distribution, split_rule)
    splits = distribution.splits(split_rule)
    outcome = predict(logits if posthoc is None else corrected(logits, posthoc), targets)
    check_range('bootstrap', bootstrap, 0)
    targets = targets.cpu()
    return {
        **_accuracies(outcome, targets, distribution, splits), **_by_split(outcome, targets, splits),
        'split_rule': split_rule, 'num_images': len(targets), 'num_classes': len(counts),
        'train_images_per_class': counts.tolist(), 'non_finite': int((outcome['predicted'] < 0).sum()),
        'posthoc': None if posthoc is None else _name_of(posthoc), 'transductive': _is_transductive(posthoc),
        'confidence': accuracy_intervals(targets, outcome['rank'], splits, bootstrap, seed) if bootstrap else None,
    }


def resolve_split_rule(distribution: ClassDistribution, rule: str) -> str:
    """The split rule to use: ``'auto'`` is gt100_lt20 if a class has fewer than 20 images, else thirds.

    Raises:
        ValueError: If there is no such rule.
    """
    if rule == 'auto':
        return 'gt100_lt20' if bool((distribution.counts < 20).any()) else 'thirds'
    distribution.splits(rule)
    return rule


def corrected(logits: Tensor, posthoc: Callable[[Tensor], Tensor]) -> Tensor:
    """Logits after a correction that sees the finite images alone; the others stay as they are."""
    usable = finite_rows(logits)
    if bool(usable.all()):
        return posthoc(logits)
    if not bool(usable.any()):
        return logits
    found = posthoc(logits[usable])
    return torch.full((len(logits), found.shape[1]), torch.nan, dtype=found.dtype, device=found.device).index_put_(
        (usable.to(found.device),), found)


def class_metrics(targets: Tensor, predicted: Tensor, num_classes: int) -> dict[str, Tensor]:
    """Images and metrics of each class, (C,); an undefined metric is NaN.

    Args:
        targets: True classes, (N,).
        predicted: Predicted classes, (N,), -1 for none.
        num_classes: C.

    Returns:
        ``images``, ``predicted_images`` (int64), and in percent ``recall`` (hits / images), ``precision`` (hits /
        predicted images) and ``f1`` (2 hits / (images + predicted images)).
    """
    hits = torch.bincount(targets[predicted == targets], minlength=num_classes).double()
    images = torch.bincount(targets, minlength=num_classes)
    guesses = torch.bincount(predicted[predicted >= 0], minlength=num_classes)
    return {
        'images': images, 'predicted_images': guesses, 'recall': 100.0 * hits / images,
        'precision': 100.0 * hits / guesses, 'f1': 200.0 * hits / (images + guesses),
    }


def _accuracies(
        outcome: Mapping[str, Tensor],
        targets: Tensor,
        distribution: ClassDistribution,
        splits: Mapping[str, Tensor],
) -> dict[str, Any]:
    rank = outcome['rank']
    classes = class_metrics(targets, outcome['predicted'], distribution.num_classes)
    recall, tested = classes['recall'], classes['images'] > 0
    accuracies = recall[tested]
    worst = int(torch.where(tested, recall, torch.inf).argmin())
    return {
        'top1': 100.0 * int((rank == 0).sum()) / len(targets),
        'top5': 100.0 * int((rank < 5).sum()) / len(targets),
        'balanced_accuracy': float(accuracies.mean()),
        **{name: _mean(recall[mask & tested]) for name, mask in splits.items()},
        'per_class': _or_none(recall),
        'precision_per_class': _or_none(classes['precision']),
        'f1_per_class': _or_none(classes['f1']),
        'worst_class': float(recall[worst]),
        'worst_class_index': worst,
        'worst_class_name': distribution.class_names[worst] if distribution.class_names else None,
        'num_worst_classes': int((accuracies == recall[worst]).sum()),
        'harmonic_mean': float(len(accuracies) / (1 / accuracies).sum()),  # 1 / 0 = inf: one lost class makes it 0
        'geometric_mean': float(accuracies.log().mean().exp()),
        'macro_f1': float(classes['f1'].nanmean()),
        'test_images_per_class': classes['images'].tolist(),
        'predicted_images_per_class': classes['predicted_images'].tolist(),
    }


def _by_split(outcome: Mapping[str, Tensor], targets: Tensor, splits: Mapping[str, Tensor]) -> dict[str, Any]:
    predicted, confidence, right = outcome['predicted'], outcome['confidence'], outcome['rank'] == 0
    split_of_class = torch.stack([splits[name] for name in SPLIT_NAMES]).int().argmax(0)
    split_of_image = split_of_class[targets]
    images = torch.bincount(split_of_image, minlength=3)
    kept = predicted >= 0
    cells = torch.bincount(3 * split_of_image[kept] + split_of_class[predicted[kept]], minlength=9).reshape(3, 3)
    share = 100.0 * cells.double() / images[:, None]
    ece = {f'ece_{name}': expected_calibration_error(confidence[split_of_image == k], right[split_of_image == k])
           for k, name in enumerate(SPLIT_NAMES)}
    tested = torch.bincount(targets, minlength=len(split_of_class)) > 0
    return {
        'ece': expected_calibration_error(confidence, right),
        **ece,
        'split_confusion': {
            true: dict(zip(SPLIT_NAMES, _or_none(row))) for true, row in zip(SPLIT_NAMES, share)},
        'splits': {name: {
            'classes': int(splits[name].sum()),
            'tested_classes': int((splits[name] & tested).sum()),
            'images': int(images[k]),
        } for k, name in enumerate(SPLIT_NAMES)},
    }


def _mean(values: Tensor) -> float | None:
    return float(values.mean()) if values.numel() else None


def _or_none(values: Tensor) -> list[float | None]:
    return [None if v != v else v for v in values.tolist()]


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

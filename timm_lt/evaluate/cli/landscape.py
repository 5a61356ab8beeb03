"""The landscape part of an evaluation: a few images of each split."""

import argparse
from typing import Any

import torch
from torch import Tensor

from ...class_distribution import SPLIT_NAMES, ClassDistribution
from ...data import ImageSubset
from ...gkp import class_gradient_cosine, feature_quality
from ..landscape import measure_landscape
from .data import Data


def landscape(
        args: argparse.Namespace,
        data: Data,
        dataset: Any,
        distribution: ClassDistribution,
        rule: str,
        logits: Tensor,
        features: Tensor,
) -> dict[str, Any]:
    """Landscape of ``--landscape-images`` images of each split, and feature quality of all tested images.

    Args:
        args: Options.
        data: Gives network and loader.
        dataset: The tested images.
        distribution: Training class sizes.
        rule: Split rule.
        logits: Of the tested images, (N, C).
        features: Inputs of the classifier, (N, D).
    """
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

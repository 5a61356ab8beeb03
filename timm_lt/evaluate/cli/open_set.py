"""The open-set part of an evaluation: images of unknown classes beside the tested ones."""

import argparse
from typing import Any

import torch
from torch import Tensor

from ...class_distribution import ClassDistribution
from ...data.parts import usual_part
from ..metrics import choose_threshold, class_prototypes, open_set_report, open_set_scores
from ..metrics.openset import UNKNOWN
from .data import Data
from .network import EvaluationError


def check_open_set_options(args: argparse.Namespace) -> None:
    """Refuse options of an open set where none is named, and fill in the scores to report."""
    if not args.open_set:
        for name in ('open_set_dir', 'open_set_split', 'open_set_score', 'threshold_split'):
            if getattr(args, name):
                raise EvaluationError(
                    f'--{name.replace("_", "-")} is of --open-set NAME, which is not given; for a folder of images: '
                    f'--open-set folder')
    args.open_set_score = args.open_set_score or ['softmax', 'energy']


def open_set(
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
        if usual_part(part) != 'train':
            images = data.apart('prototypes cannot be taken', 'train', tested)
            _, train_targets, train_features = data.collect(images, 'prototypes', True)
            train = (train_features, train_targets)
        prototypes = class_prototypes(*train, data.network.num_classes)
        assert features is not None and unknown_features is not None  # collected because the score needs them
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
            '; training images, whose scores are higher than those of new ones' if usual_part(part) == 'train' else '')
        found = open_set_report(
            scores(everything, features), predictions, labels, threshold=chosen, score=score,
            class_counts=distribution, split_rule=rule)
        results.append({**found, 'unknown': args.open_set, 'predictions': made_by})
    return results

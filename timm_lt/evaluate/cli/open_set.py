"""The open-set part of an evaluation: images of unknown classes beside the tested ones."""

import argparse
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ...class_distribution import ClassDistribution
from ...data.parts import usual_part
from ...hub import Checkpoint, OpenSetThreshold, write_open_set
from ...hub.loading import SHIPPED
from ..metrics import choose_threshold, open_set_report
from ..metrics.openset import SCORES, UNKNOWN, TrainingOutputs, fit_open_set_score
from .data import Data
from .network import EvaluationError, classifier_of


def check_open_set_options(args: argparse.Namespace) -> None:
    """Refuse options of an open set where none is named, and fill in the scores to report."""
    if not args.open_set:
        for name in ('open_set_dir', 'open_set_split', 'open_set_score', 'threshold_split', 'keep_threshold'):
            if getattr(args, name):
                raise EvaluationError(
                    f'--{name.replace("_", "-")} is of --open-set NAME, which is not given; for a folder of images: '
                    f'--open-set folder')
    args.open_set_score = args.open_set_score or ['softmax', 'energy']
    kept = args.keep_threshold
    able = [name for name in args.open_set_score if not SCORES[name].fitted and not SCORES[name].needs_features]
    if kept and kept not in able:
        raise EvaluationError(
            f'--keep-threshold takes a score of --open-set-score that reads logits alone, {", ".join(able) or "none"} '
            f'here, got {kept!r}')


def keep_threshold(args: argparse.Namespace, network: Checkpoint, results: list[dict[str, Any]]) -> None:
    """Store the threshold of the score that ``--keep-threshold`` names in the folder of the checkpoint."""
    if network.folder is None or network.folder.parent == SHIPPED:
        raise EvaluationError(
            f'--keep-threshold needs a checkpoint in a folder of yours, which {network.source!r} is not')
    found = next(result for result in results if result['score'] == args.keep_threshold)
    write_open_set(network.folder, OpenSetThreshold(found['score'], found['threshold'], found['threshold_rule']))


def needs_features(args: argparse.Namespace) -> bool:
    """Whether a score of the open set reads the input of the classifier."""
    return bool(args.open_set) and any(SCORES[score].needs_features for score in args.open_set_score)


def _training_outputs(data: Data, logits: Tensor, targets: Tensor, features: Tensor | None) -> TrainingOutputs:
    if features is None:
        return TrainingOutputs(targets, logits)
    layer = classifier_of(data.network.model)
    linear = isinstance(layer, nn.Linear)
    weight, bias = (getattr(layer, name, None) if linear else None for name in ('weight', 'bias'))
    return TrainingOutputs(targets, logits, features, *(None if t is None else t.cpu() for t in (weight, bias)))


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
    wanted = needs_features(args)
    part, known = data.for_threshold(tested)
    validation = data.collect(known, f'split {part}', wanted)
    unknown_logits, _, unknown_features = data.collect(data.unknown(), 'unknown classes', wanted)
    training = None
    if any(SCORES[score].fitted for score in args.open_set_score):
        train = validation
        if usual_part(part) != 'train':
            images = data.apart('scores cannot be fitted', 'train', tested)
            train = data.collect(images, 'training images', wanted)
        training = _training_outputs(data, *train)
    if features is not None and unknown_features is not None:
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
        try:
            scorer = fit_open_set_score(score, training)
        except ValueError as e:
            raise EvaluationError(f'--open-set-score {score}: {e}') from e
        val_logits, _, val_features = validation
        chosen = choose_threshold(scorer.score(val_logits, val_features))
        chosen['rule'] = f'keeps 95% of the images of part {part!r}; no unknown image seen' + (
            '; training images, whose scores are higher than those of new ones' if usual_part(part) == 'train' else '')
        found = open_set_report(
            scorer.score(everything, features), predictions, labels, threshold=chosen, score=score,
            class_counts=distribution, split_rule=rule)
        results.append({**found, 'unknown': args.open_set, 'predictions': made_by})
    return results

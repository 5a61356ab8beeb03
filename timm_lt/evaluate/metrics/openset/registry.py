"""Scores of the known by name: a class each, fitted to training images where its definition needs them."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...._labels import read_labels
from ...._validate import check_option

SCORES: dict[str, type['OpenSetScore']] = {}


@dataclass(frozen=True)
class TrainingOutputs:
    """A network on its training images.

    Attributes:
        targets: Classes, (N,).
        logits: (N, C), or None.
        features: Input of the classifier, (N, D), or None.
        weight: Weight of a linear classifier, (C, D), or None.
        bias: Its bias, (C,), or None.
    """
    targets: Any
    logits: Any = None
    features: Any = None
    weight: Any = None
    bias: Any = None


class OpenSetScore:
    """How likely an image belongs to a known class.

    A subclass sets ``needs_features`` if it reads features of the tested images, and ``fitted`` if it reads training
    images. It defines :meth:`score`, and :meth:`fit` if it is fitted.
    """

    needs_features = False
    fitted = False

    def fit(self, training: TrainingOutputs) -> None:
        """Learn from training images; scores with ``fitted``."""

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        """Scores (N,); NaN for an image that is not finite."""
        raise TypeError(f'{type(self).__name__} must define score(logits, features)')


def register_score(name: str) -> Callable[[type[OpenSetScore]], type[OpenSetScore]]:
    """Class decorator: make a score known by name."""

    def add(score: type[OpenSetScore]) -> type[OpenSetScore]:
        SCORES[name] = score
        return score

    return add


def fit_open_set_score(name: str, training: TrainingOutputs | None = None, **options: Any) -> OpenSetScore:
    """A score by name, fitted to training images if it needs them.

    Args:
        name: A key of ``SCORES``.
        training: What the network gave on its training images; needed by scores with ``fitted``.
        options: Options of the score.

    Raises:
        ValueError: If the name is unknown, or the training images or a part of their outputs are missing.
    """
    check_option('score', name, tuple(SCORES))
    score = SCORES[name](**options)
    if score.fitted:
        if training is None:
            raise ValueError(f'score={name!r} is fitted to training images; pass training=TrainingOutputs(...)')
        score.fit(training)
    return score


@torch.no_grad()
def open_set_scores(
        logits: Any = None,
        *,
        score: str = 'softmax',
        features: Any = None,
        prototypes: Any = None,
        temperature: float = 1.0,
        training: TrainingOutputs | None = None,
) -> Tensor:
    """How likely each image belongs to a known class, (N,), on the CPU. Higher is more likely; NaN: not finite.

    Args:
        logits: (N, C); ``'prototype'`` and ``'nearest_neighbor'`` do not need them.
        score: ``'softmax'``: largest softmax value. ``'energy'``: ``T logsumexp(z / T)``. ``'max_logit'``: largest
            logit. ``'prototype'``: minus the distance of the normalised feature to the nearest class prototype.
            ``'nearest_neighbor'``: minus its distance to the 50th nearest training image. ``'vim'``: energy less the
            scaled part of the feature outside the training images' principal space. ``'openmax'``: log odds of the
            known classes under OpenMax.
        features: Input of the classifier, (N, D), for ``'prototype'``, ``'nearest_neighbor'`` and ``'vim'``.
        prototypes: (C, D), for ``'prototype'``, see :func:`class_prototypes`; None: from ``training``.
        temperature: T of the energy.
        training: Training images, for ``'prototype'`` without prototypes, ``'nearest_neighbor'``, ``'vim'``,
            ``'openmax'``. To score several sets, fit once by :func:`fit_open_set_score`.
    """
    check_option('score', score, tuple(SCORES))
    needs_features = SCORES[score].needs_features
    if needs_features and features is None:
        raise ValueError(f'score={score!r} needs features=(N, D), the input of the classifier')
    if logits is None and score not in ('prototype', 'nearest_neighbor'):
        raise ValueError(f'score={score!r} needs logits of shape (N, C)')
    if score == 'prototype' and prototypes is not None:
        build: Any = SCORES[score]
        scorer: OpenSetScore = build(prototypes)
    else:
        options = {'temperature': temperature} if score == 'energy' else {}
        scorer = fit_open_set_score(score, training, **options)
    logits = None if logits is None else torch.as_tensor(logits).detach()
    return scorer.score(logits, as_float(features) if needs_features else None).cpu()


def as_float(tensor: Any) -> Tensor:
    """A tensor without gradient, in float32 at least."""
    tensor = torch.as_tensor(tensor).detach()
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def training_part(training: TrainingOutputs, name: str, score: str) -> Tensor:
    """Features or logits of the training images, checked.

    Raises:
        ValueError: If they are missing, or one is not finite.
    """
    values = getattr(training, name)
    if values is None:
        raise ValueError(
            f'score={score!r} is fitted to the {name} of training images; pass TrainingOutputs({name}=...)')
    values = as_float(values)
    check_finite(values, name, f'nothing can be fitted for score={score!r}')
    return values


def check_finite(values: Tensor, what: str, consequence: str) -> None:
    """Raise a ValueError where rows of a tensor, (N, D), are not finite."""
    broken = int((~values.isfinite().all(1)).sum())
    if broken:
        raise ValueError(
            f'{broken} of {len(values)} {what} are NaN or infinite: {consequence}; does the network have NaN weights?')


def training_targets(training: TrainingOutputs, device: torch.device) -> Tensor:
    """Classes of the training images, (N,), int64."""
    return read_labels(training.targets, allow_empty=True).to(device)

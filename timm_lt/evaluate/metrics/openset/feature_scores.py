"""Scores from the input of the classifier, compared with that of training images.

Papers: Z. Liu et al., CVPR 2019 (prototypes); Y. Sun et al., "Out-of-Distribution Detection with Deep Nearest
Neighbors", ICML 2022 (nearest neighbour); H. Wang et al., "ViM: Out-Of-Distribution with Virtual-logit Matching",
CVPR 2022 (ViM).
Source: written from the papers.
Differs from the papers / official code: a set of fewer images than neighbours takes the farthest one. The eigenvectors
of ViM are those of the second moment around its origin in float64.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ...._labels import read_labels
from ...._validate import check_whole
from ..predictions import CHUNK_ELEMENTS
from .logit_scores import by_rows
from .registry import (
    OpenSetScore,
    TrainingOutputs,
    as_float,
    check_finite,
    register_score,
    training_part,
)


@torch.no_grad()
def class_prototypes(features: Any, targets: Any, num_classes: int) -> Tensor:
    """Mean of the normalised features of each class, normalised, (C, D); NaN for a class without an image.

    Args:
        features: Features of training images, (N, D).
        targets: Their classes, (N,).
        num_classes: C.

    Raises:
        ValueError: If a feature is not finite.
    """
    features = F.normalize(as_float(features), dim=1)
    check_finite(features, 'features', 'no prototype can be computed')
    targets = read_labels(targets, allow_empty=True).to(features.device)
    sums = features.new_zeros(num_classes, features.shape[1]).index_add_(0, targets, features)
    counts = torch.bincount(targets, minlength=num_classes)
    return torch.where(counts[:, None] > 0, F.normalize(sums, dim=1), torch.nan)


@register_score('prototype')
class Prototype(OpenSetScore):
    """Minus the distance of the normalised feature to the nearest class prototype.

    Args:
        prototypes: (C, D), see :func:`class_prototypes`; None: fitted.
    """

    needs_features = fitted = True

    def __init__(self, prototypes: Any = None) -> None:
        self.prototypes = None if prototypes is None else as_float(prototypes)

    def fit(self, training: TrainingOutputs) -> None:
        features = training_part(training, 'features', 'prototype')
        targets = read_labels(training.targets, allow_empty=True)
        self.prototypes = class_prototypes(features, targets, int(targets.max()) + 1)

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert features is not None and self.prototypes is not None
        unit, prototypes = F.normalize(features, dim=1), self.prototypes.to(features)
        return -torch.cdist(unit, prototypes[torch.isfinite(prototypes).all(1)]).min(1).values


@register_score('nearest_neighbor')
class NearestNeighbor(OpenSetScore):
    """Minus the distance of the normalised feature to its k-th nearest training image.

    Args:
        k: Rank of the neighbour, >= 1. The paper uses 50 on CIFAR.
    """

    needs_features = fitted = True

    def __init__(self, k: int = 50) -> None:
        self.k = check_whole('k', k, 1)

    def fit(self, training: TrainingOutputs) -> None:
        self.bank = F.normalize(training_part(training, 'features', 'nearest_neighbor'), dim=1)

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert features is not None
        bank, k = self.bank.to(features), min(self.k, len(self.bank))
        rows = max(1, CHUNK_ELEMENTS // len(bank))
        unit = F.normalize(features, dim=1)
        found = [-torch.cdist(part, bank).kthvalue(k, dim=1).values for part in unit.split(rows)]
        return torch.cat(found).masked_fill(~unit.isfinite().all(1), torch.nan)


@register_score('vim')
class ViM(OpenSetScore):
    """``logsumexp(z) - alpha |residual|``, the part of the feature outside the principal space of the training images.

    The origin of the space is ``-W^+ b`` of the linear classifier, 0 if there is none. alpha makes the mean virtual
    logit of the training images their mean largest logit.

    Args:
        dim: Dimensions of the principal space, >= 1. None follows the official code: 1000 for D >= 2048, 512 for D >=
            768, else D / 2.
    """

    needs_features = fitted = True

    def __init__(self, dim: int | None = None) -> None:
        self.dim = None if dim is None else check_whole('dim', dim, 1)

    def fit(self, training: TrainingOutputs) -> None:
        features = training_part(training, 'features', 'vim').double()
        logits = training_part(training, 'logits', 'vim').double()
        self.origin = features.new_zeros(features.shape[1])
        if training.weight is not None and training.bias is not None:
            weight, bias = (as_float(t).to(features) for t in (training.weight, training.bias))
            self.origin = -torch.linalg.pinv(weight) @ bias
        size = features.shape[1]
        dim = self.dim or (1000 if size >= 2048 else 512 if size >= 768 else size // 2)
        if dim >= size:
            raise ValueError(f'dim must be below {size}, the size of the features, got {dim}')
        moved = features - self.origin
        _, vectors = torch.linalg.eigh(moved.T @ moved / len(moved))  # ascending eigenvalues
        self.null_space = vectors[:, :size - dim]
        residual = (moved @ self.null_space).norm(dim=1).mean()
        self.alpha = torch.where(residual > 0, logits.amax(1).mean() / residual, 0.0)

    def score(self, logits: Tensor | None, features: Tensor | None) -> Tensor:
        assert logits is not None and features is not None
        residual = ((features.double() - self.origin) @ self.null_space).norm(dim=1)
        scores = by_rows(logits, lambda z: z.logsumexp(1)).double() - self.alpha * residual
        return scores.masked_fill(~residual.isfinite(), torch.nan)

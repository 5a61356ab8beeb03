"""Groups of classes: normalised-cut spectral clustering of the encoders in the memory bank.

Paper: Chen et al., "GKP+GSA", CVPR 2026, memory-based grouping: similarity of the classes' stored parameters, G = 4
(6 on ImageNet-LT).
Source: written from the paper: the clustering of scikit-learn's ``SpectralClustering`` on the affinity ``1 + cosine``.
Classes that share a snapshot are one point of the embedding. The eigenproblem is therefore solved for the E distinct
snapshots, each weighted by the number of its classes. This gives the same cut at a cost of E^3 instead of C^3.
Differs from the official code: that one clusters once, before training, C equal weight vectors, so that its groups are
arbitrary. Here the cosine of the classes' mean gradients decides where a bank has fewer distinct snapshots than groups.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from .bank import MemoryBank

__all__ = [
    'canonical_groups', 'class_gradient_cosine', 'class_gradient_similarity', 'group_classes', 'rows_per_class',
    'spectral_groups', 'weighted_spectral_groups',
]

_MAX_SAMPLES = 8192  # N of the inner products of class gradients, which cost N^2


def canonical_groups(groups: Sequence[int] | Tensor) -> Tensor:
    """The same partition with groups numbered 0, 1, ... in the order of their first class, (C,), int64."""
    number: dict[int, int] = {}
    return torch.tensor([number.setdefault(int(g), len(number)) for g in groups], dtype=torch.int64)


def spectral_groups(similarity: Tensor, num_groups: int, seed: int = 0) -> Tensor:
    """Cut classes into groups by normalised-cut spectral clustering.

    Args:
        similarity: Cosines, (C, C), symmetric, in [-1, 1]; the affinity is ``1 + cosine``.
        num_groups: G >= 1; with G >= C every class is one group.
        seed: Of the clustering.

    Returns:
        Group of each class, (C,), int64, numbered in the order of their first class. There may be fewer than G groups
        when classes cannot be told apart.
    """
    if num_groups < 1:
        raise ValueError(f'num_groups must be >= 1, got {num_groups}')
    num_classes = len(similarity)
    if num_groups == 1:
        return torch.zeros(num_classes, dtype=torch.int64)
    if num_groups >= num_classes:
        return torch.arange(num_classes)
    import warnings

    from sklearn.cluster import SpectralClustering

    affinity = (1 + similarity.double()).clamp(min=0).cpu().numpy()
    clustering = SpectralClustering(
        num_groups, affinity='precomputed', assign_labels='kmeans', random_state=seed, n_init=10)
    with warnings.catch_warnings():
        # scikit-learn warns of coinciding points (a shared snapshot) and of unconnected graphs; both are valid here
        warnings.simplefilter('ignore')
        labels = clustering.fit_predict(affinity)
    return canonical_groups(labels)


def weighted_spectral_groups(similarity: Tensor, counts: Tensor, num_groups: int, seed: int = 0) -> Tensor:
    """:func:`spectral_groups` of points that each represent several classes of the same similarity.

    Args:
        similarity: Cosines between the E points, (E, E).
        counts: Classes of each point, (E,), >= 1.
        num_groups: G, in [1, E].
        seed: Of the clustering.

    Returns:
        Group of each point, (E,), int64, not renumbered.
    """
    from sklearn.cluster import KMeans

    affinity, m = (1 + similarity.double()).clamp(min=0), counts.double()
    # degrees without self-loops, as for the C classes; a vector that is constant over the classes of a point stays so
    degree = (affinity @ m - affinity.diagonal()).clamp(min=1e-12)
    scaled = m.sqrt()[:, None] * affinity * m.sqrt() / degree.sqrt()[:, None] / degree.sqrt()
    _, vectors = torch.linalg.eigh(scaled - torch.diag(affinity.diagonal() / degree))
    embedding = vectors[:, -num_groups:] / (m * degree).sqrt()[:, None]
    clustering = KMeans(num_groups, n_init=10, random_state=seed)
    return torch.from_numpy(clustering.fit_predict(embedding.numpy(), sample_weight=m.numpy())).long()


def rows_per_class(num_classes: int) -> int:
    """Samples per class for the class gradients: 8192 divided by the number of classes, at least one."""
    return max(1, _MAX_SAMPLES // num_classes)


def class_gradient_cosine(features: Tensor, residuals: Tensor, labels: Tensor, num_classes: int) -> Tensor:
    """Cosine between the classes' mean gradients with respect to a linear classifier, (C, C), float64.

    The gradient of a sample is the outer product of its residual ``softmax(z) - onehot(y)`` and its features. Inner
    products of class means therefore follow from ``(R R^T) * (F F^T)``, and no C x D gradient is formed.

    Args:
        features: Input of the classifier, (N, D); the cost goes with N^2, see :func:`rows_per_class`.
        residuals: ``softmax(z) - onehot(y)``, (N, C).
        labels: (N,).
        num_classes: C. A class without a row is similar to none (cosine 0).
    """
    count = torch.bincount(labels, minlength=num_classes).double()
    gram = torch.zeros(num_classes, num_classes, dtype=torch.float64, device=features.device)
    for rows in torch.arange(len(labels), device=labels.device).split(1024):
        table = (residuals[rows] @ residuals.T).double() * (features[rows] @ features.T).double()
        columns = torch.zeros(len(rows), num_classes, dtype=torch.float64, device=table.device)
        gram.index_add_(0, labels[rows], columns.index_add_(1, labels, table))
    gram = gram / count.clamp(min=1)[:, None] / count.clamp(min=1)
    norm = gram.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
    cosine = (gram / norm[:, None] / norm).clamp(-1, 1)
    return ((cosine + cosine.T) / 2).fill_diagonal_(1.0).cpu()


def class_gradient_similarity(features: Tensor, residuals: Tensor, labels: Tensor, class_counts: Tensor) -> Tensor:
    """Cosine between each class's mean gradient and that of a batch as the training set has it, (C,), float64.

    Gradients are with respect to a linear classifier, see :func:`class_gradient_cosine`. The gradient of the batch is
    the mean of the classes' gradients, weighted by class size. NaN for a class without a row.

    Args:
        features: (N, D).
        residuals: ``softmax(z) - onehot(y)``, (N, C).
        labels: (N,).
        class_counts: Training images per class, (C,).
    """
    features, residuals = features.double(), residuals.double()
    count = torch.bincount(labels, minlength=len(class_counts)).double()
    weight = (class_counts.double().to(count.device) / class_counts.sum() / count.clamp(min=1))[labels]
    batch = (residuals * weight[:, None]).T @ features
    product = torch.zeros_like(count).index_add_(0, labels, ((residuals @ batch) * features).sum(1)) / count
    squared = torch.full_like(count, float('nan'))
    for c in labels.unique().tolist():
        r, f = residuals[labels == c], features[labels == c]
        squared[c] = ((r @ r.T) * (f @ f.T)).sum() / len(r) ** 2
    return (product / (squared.sqrt() * batch.norm()).clamp(min=1e-300)).cpu()


def group_classes(
        bank: MemoryBank,
        num_groups: int,
        *,
        fallback: Tensor | None = None,
        seed: int = 0,
) -> tuple[Tensor, str]:
    """Groups from the memory bank, equal on all processes.

    Args:
        bank: Filled on the process of rank 0 (the clustering runs there and is broadcast).
        num_groups: G.
        fallback: Similarity (C, C) for a bank with fewer than G distinct snapshots, see :func:`class_gradient_cosine`.
            Without one such a bank gives the groups that its snapshots allow.
        seed: Of the clustering.

    Returns:
        Group of each class (C,), int64, and the source of the similarity: ``'bank'``, ``'gradient'`` or ``'trivial'``.
        It is trivial for one group, for one class per group, or if snapshots cannot tell more groups apart.
    """
    distributed = dist.is_available() and dist.is_initialized()
    result: list = [None]
    if not distributed or dist.get_rank() == 0:
        result = [_group_here(bank, num_groups, fallback, seed)]
    if distributed:
        dist.broadcast_object_list(result, src=0)
    return result[0]


def _group_here(bank: MemoryBank, num_groups: int, fallback: Tensor | None, seed: int) -> tuple[Tensor, str]:
    if num_groups == 1 or num_groups >= bank.num_classes:
        return spectral_groups(torch.eye(bank.num_classes), num_groups, seed), 'trivial'
    distinct = len(bank.epochs)
    if distinct < num_groups and fallback is not None:
        return spectral_groups(fallback, num_groups, seed), 'gradient'
    if distinct <= num_groups:
        return canonical_groups(bank.best_epoch), 'bank' if distinct == num_groups else 'trivial'
    similarity, point = bank.snapshot_similarity()
    groups = weighted_spectral_groups(similarity, torch.bincount(point), num_groups, seed)
    return canonical_groups(groups[point]), 'bank'

"""Feature quality of a class: its distance from the nearest other class, and its compactness.

Paper: Chen et al., "GKP+GSA", CVPR 2026, feature quality: ``Q_c = Dis_c - beta * log Var_c``.
Implements: ``Dis_c`` is the distance of the centroid of class c to the nearest other centroid. ``Var_c`` is the mean
squared distance of its features to its centroid; beta = 0.5.
Source: written from the paper; compared with the released code in ``tests/golden``.
Differs from the official code: that code uses ``-1 / Dis_c - log Var_c`` (``variant='released'`` here) and takes its
features from the test set. Callers pass training or validation features here. Means and squared distances to them are
merged batch by batch (Chan et al.). Memory is one (C, D) table for any number of images, and features far from the
origin lose no digits.
"""

from dataclasses import dataclass
from typing import cast

import torch
import torch.distributed as dist
from torch import Tensor

from .._validate import check_option, check_range

__all__ = ['FeatureQuality', 'QualityMeter', 'feature_quality']

VARIANTS = ('paper', 'released')
_ROWS = 1024  # rows of the distance table held at a time


@dataclass(frozen=True)
class FeatureQuality:
    """Quality of the features of each class, all arrays (C,).

    Attributes:
        count: Images measured.
        variance: Mean squared distance to the centroid; 0 where absent.
        distance: Distance of the centroid to the nearest other one; 0 where absent or where there is no other class.
        quality: Q; NaN where not defined.
        defined: Classes with a quality: at least two different features, and another class to be compared with.
    """
    count: Tensor
    variance: Tensor
    distance: Tensor
    quality: Tensor
    defined: Tensor

    @property
    def present(self) -> Tensor:
        """Mask (C,) of the classes with at least one image."""
        return self.count > 0

    def score(self) -> Tensor:
        """Score that the memory bank compares between epochs, (C,).

        Q; the distance alone for a class of one image, whose variance is always 0; NaN where neither exists.
        """
        nothing = torch.full_like(self.quality, float('nan'))
        single = (self.count == 1) & (self.distance > 0)
        return torch.where(self.defined, self.quality, torch.where(single, self.distance, nothing))

    def mean(self, mask: Tensor) -> float | None:
        """Mean quality of the classes of ``mask`` that have one, None without any."""
        chosen = self.quality[mask & self.defined]
        return float(chosen.mean()) if chosen.numel() else None


class QualityMeter:
    """Gathers features batch by batch and gives the quality of every class.

    Args:
        num_classes: C.
        beta: Weight of the log variance, >= 0; None takes 0.5 (paper) or 1 (released).
        variant: ``'paper'``: ``Dis - beta log Var``; ``'released'``: ``-1 / Dis - beta log Var``.

    Examples:
        >>> meter = QualityMeter(num_classes=2)
        >>> meter.update(torch.tensor([[0., 0.], [2., 0.], [0., 5.], [2., 5.]]), torch.tensor([0, 0, 1, 1]))
        >>> meter.compute().quality.tolist()
        [5.0, 5.0]
    """

    def __init__(self, num_classes: int, beta: float | None = None, variant: str = 'paper') -> None:
        self.variant = check_option('variant', variant, VARIANTS)
        self.beta = check_range('beta', (0.5 if variant == 'paper' else 1.0) if beta is None else beta, 0)
        self.num_classes = num_classes
        self._mean: Tensor | None = None
        self._squares = torch.zeros(num_classes, dtype=torch.float64)  # summed squared distances to the mean
        self._counts = torch.zeros(num_classes, dtype=torch.float64)

    def update(self, features: Tensor, labels: Tensor) -> None:
        """Add the features (B, D) of images with labels (B,)."""
        if features.ndim != 2 or labels.shape != features.shape[:1]:
            raise ValueError(
                f'features must be (B, D) with labels (B,), got {tuple(features.shape)} and {tuple(labels.shape)}')
        features, labels = features.detach().double(), labels.detach().to(features.device)
        if self._mean is None:
            self._mean = features.new_zeros(self.num_classes, features.shape[1])
            self._squares, self._counts = self._squares.to(features.device), self._counts.to(features.device)
        classes, row = labels.unique(return_inverse=True)
        count = torch.bincount(row, minlength=len(classes)).double()
        mean = features.new_zeros(len(classes), features.shape[1]).index_add_(0, row, features) / count[:, None]
        squares = torch.zeros_like(count).index_add_(0, row, (features - mean[row]).square().sum(1))
        before, total = self._counts[classes], self._counts[classes] + count
        shift = mean - self._mean[classes]
        self._squares[classes] += squares + shift.square().sum(1) * before * count / total
        self._mean[classes] += shift * (count / total)[:, None]
        self._counts[classes] = total

    def reduce(self, feature_dim: int, device: torch.device | str = 'cpu') -> None:
        """Merge over the processes; one that saw no image takes part too. Without a process group: nothing."""
        if not (dist.is_available() and dist.is_initialized()):
            return
        if self._mean is None:
            self.update(torch.zeros(0, feature_dim, device=device), torch.zeros(0, dtype=torch.int64, device=device))
        own, count = cast(Tensor, self._mean), self._counts.clone()
        dist.all_reduce(self._counts)
        self._mean = own * (count / self._counts.clamp(min=1))[:, None]
        dist.all_reduce(self._mean)
        self._squares += (own - self._mean).square().sum(1) * count
        dist.all_reduce(self._squares)

    def compute(self) -> FeatureQuality:
        """Quality of every class, on the CPU."""
        if self._mean is None:
            raise ValueError('no features yet; call update(features, labels) first')
        count, centroid = self._counts, self._mean
        variance = self._squares / count.clamp(min=1)
        # the variance of equal images is only the rounding of a float32 network
        variance = torch.where((count >= 2) & (variance > 1e-13 * centroid.square().sum(1)), variance, 0.0)
        distance = nearest_centroid_distance(centroid, count > 0)
        defined = (variance > 0) & ((count > 0).sum() >= 2)
        separation = distance if self.variant == 'paper' else -1 / distance
        quality = torch.where(defined, separation - self.beta * variance.log(), float('nan'))
        return FeatureQuality(*(t.cpu() for t in (count.long(), variance, distance, quality, defined)))


def nearest_centroid_distance(centroid: Tensor, present: Tensor) -> Tensor:
    """Distance (C,) of each present centroid (C, D) to the nearest other present one; 0 where there is none."""
    index = present.nonzero().flatten()
    distance = centroid.new_zeros(centroid.shape[0])
    if index.numel() < 2:
        return distance
    points = centroid[index]
    points = points - points.mean(0)  # the table is rounded to the length of the points
    for start in range(0, len(points), _ROWS):  # a C x C table of iNaturalist would take half a gigabyte
        rows = torch.arange(start, min(start + _ROWS, len(points)), device=points.device)
        table = torch.cdist(points[rows], points)
        table[torch.arange(len(rows), device=points.device), rows] = float('inf')
        nearest = table.argmin(1)
        # the table comes from a matrix product and is rounded, so the distance is computed again from the difference
        distance[index[rows]] = (points[rows] - points[nearest]).norm(dim=1)
    return distance


def feature_quality(
        features: Tensor,
        labels: Tensor,
        num_classes: int,
        *,
        beta: float | None = None,
        variant: str = 'paper',
) -> FeatureQuality:
    """Quality of every class from all its features at once, see :class:`QualityMeter`.

    Args:
        features: Input of the classifier, (N, D).
        labels: Class of each row, (N,), int64.
        num_classes: C; classes without a row are not defined.
        beta, variant: See :class:`QualityMeter`.
    """
    meter = QualityMeter(num_classes, beta, variant)
    meter.update(features, labels)
    return meter.compute()

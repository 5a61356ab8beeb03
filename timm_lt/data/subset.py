"""Long-tailed subsets of balanced datasets, and validation parts.

Papers: Y. Cui et al., "Class-Balanced Loss Based on Effective Number of Samples", CVPR 2019,
https://arxiv.org/abs/1901.05555 (exponential profile); M. Buda et al., "A systematic study of the class imbalance
problem in convolutional neural networks", Neural Networks 2018, https://arxiv.org/abs/1710.05381 (step profile).
Implements: with imbalance ratio r = n_max / n_min and C classes in label order, ``n_c = n_max * r ** (-c / (C - 1))``
rounded down (exponential). Step profile: ``n_max`` for the first half of the classes, ``n_max / r`` for the others.
Source: written from the papers.
Differs from the papers / official code: rounding down is exact (floating point gives 4 for 4980 / 996), and no class is
left empty. A separate seeded permutation chooses the images of a class, so subsets nest.
"""

import copy
import math
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Subset

from .._dataset_labels import get_class_names, get_targets
from .._labels import read_labels, whole_numbers
from .._validate import check_option, check_range, check_whole
from .reading import image_name, read_sample

__all__ = ['ImageSubset', 'long_tailed_counts', 'long_tailed_subset', 'split_indices', 'split_validation']

PROFILES = ('exp', 'step')


class ImageSubset(Subset):
    """Selected images of a map-style dataset, with their labels and a separate transform.

    The base dataset is copied (not its images), so that two subsets of one dataset can have different transforms. An
    image that cannot be read is an :class:`ImageReadError`, also where timm would take the next one.

    Args:
        dataset: Map-style dataset of (image, label) with an attribute ``transform``.
        indices: Positions in ``dataset``; None takes all.

    Attributes:
        targets: Labels, (N,), int64.
        class_names: Names in label order, or None.
        transform: Transform of the images; setting it sets it in this subset only.
        found: What the reader of the whole dataset found and left out (:class:`Found`), or None.
    """

    dataset: Any  # torch's annotation has no length

    def __init__(self, dataset: Any, indices: Sequence[int] | Tensor | None = None) -> None:
        targets, class_names = get_targets(dataset), get_class_names(dataset)
        if indices is None:
            indices = range(len(dataset))
        chosen = whole_numbers(indices, 'indices')
        if chosen.ndim != 1:
            raise ValueError(f'indices must be one-dimensional, got shape {tuple(chosen.shape)}')
        if chosen.numel() and (int(chosen.min()) < 0 or int(chosen.max()) >= len(dataset)):
            raise ValueError(
                f'indices must be in [0, {len(dataset) - 1}], got {int(chosen.min())} to {int(chosen.max())}')
        self.targets = targets[chosen]
        self.class_names = class_names
        self.found = getattr(dataset, 'found', None)
        # one level only, so that the copy below reaches the transform; a subset that changes its samples stays
        while getattr(type(dataset), '__getitem__', None) in (Subset.__getitem__, ImageSubset.__getitem__):
            chosen = whole_numbers(dataset.indices, 'indices')[chosen]
            dataset = dataset.dataset
        super().__init__(copy.copy(dataset), chosen.tolist())

    @property
    def transform(self) -> Any:
        return getattr(self.dataset, 'transform', None)

    @transform.setter
    def transform(self, transform: Any) -> None:
        if not hasattr(self.dataset, 'transform'):
            raise TypeError(
                f'{type(self.dataset).__name__} has no attribute `transform`, so none can be set; '
                f'give it one that it applies to its images')
        self.dataset.transform = transform

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """File name of an image, where the base dataset knows it."""
        if hasattr(self.dataset, 'filename'):
            return self.dataset.filename(self.indices[index], basename=basename, absolute=absolute)
        return image_name(self.dataset, self.indices[index])

    def __getitem__(self, index: int) -> tuple[Any, int]:
        return read_sample(self.dataset, self.indices[index])

    def __getitems__(self, indices: list[int]) -> list[tuple[Any, int]]:
        return [self[i] for i in indices]


def check_imbalance_ratio(imbalance_ratio: float) -> float:
    """The ratio of the largest to the smallest class, >= 1."""
    check_range('imbalance_ratio', imbalance_ratio, 0, low_open=True)
    if imbalance_ratio < 1:
        raise ValueError(
            f'imbalance_ratio must be >= 1, the size of the largest over that of the smallest class, '
            f'got {imbalance_ratio}; some papers write it the other way round: {1 / imbalance_ratio:g}?')
    return imbalance_ratio


def long_tailed_counts(n_max: int, num_classes: int, imbalance_ratio: float = 100, profile: str = 'exp') -> Tensor:
    """Images per class of a long-tailed set.

    Args:
        n_max: Images of the largest class, >= 1.
        num_classes: Number of classes C, >= 1.
        imbalance_ratio: Largest over smallest class, >= 1; 1 is balanced.
        profile: 'exp' or 'step'.

    Returns:
        Counts, (C,), int64, each >= 1, not increasing.

    Raises:
        ValueError: If an argument is out of range.
    """
    check_imbalance_ratio(imbalance_ratio)
    check_option('profile', profile, PROFILES)
    check_range('n_max', n_max, 1)
    check_whole('num_classes', num_classes, 1)
    ratio = Fraction(str(imbalance_ratio))
    if profile == 'step':
        head = num_classes // 2 if num_classes > 1 else 1
        counts = [n_max] * head + [int(n_max / ratio)] * (num_classes - head)
    else:
        counts = [_exponential(n_max, c, num_classes - 1, ratio) for c in range(num_classes)]
    return torch.tensor(counts, dtype=torch.int64, device='cpu').clamp(min=1)


def _exponential(n_max: int, c: int, last: int, ratio: Fraction) -> int:
    """``floor(n_max * ratio ** (-c / last))`` without rounding errors."""
    if last == 0:
        return n_max
    value = n_max * float(ratio) ** (-c / last)
    nearest = round(value)
    if abs(value - nearest) > 1e-6 * max(value, 1):
        return math.floor(value)
    # too close for floating point: n <= value exactly when n**last * ratio**c <= n_max**last
    return nearest if nearest ** last * ratio ** c <= n_max ** last else nearest - 1


def long_tailed_subset(
        dataset: Any,
        imbalance_ratio: float = 100,
        profile: str = 'exp',
        seed: int = 0,
        *,
        n_max: int | None = None,
) -> ImageSubset:
    """A long-tailed subset of a dataset, class 0 the largest.

    With the same seed the subset of a larger ratio is part of that of a smaller ratio.

    Args:
        dataset: Map-style dataset of (image, label).
        imbalance_ratio: Largest over smallest class, >= 1; 1 gives a balanced set.
        profile: 'exp' or 'step', see :func:`long_tailed_counts`.
        seed: Chooses the images of each class.
        n_max: Images of the largest class. None takes the size of the smallest class of ``dataset``, because every
            class then has enough.

    Returns:
        The subset, images in the order of ``dataset``, with ``indices``, ``targets`` and ``class_names``.

    Raises:
        ValueError: If an argument is out of range, or a class has too few images.

    Examples:
        >>> digits = timm_lt.data.create_dataset('timm_lt/digits', split='train')
        >>> len(long_tailed_subset(digits, imbalance_ratio=100))
        339
    """
    targets = get_targets(dataset)
    names = get_class_names(dataset)
    if len(targets) == 0:
        raise ValueError('the dataset has no images')
    num_classes = max(len(names) if names else 0, int(targets.max()) + 1)
    available = torch.bincount(targets, minlength=num_classes)
    n_max = int(available.min()) if n_max is None else n_max
    if n_max == 0:
        empty = (available == 0).nonzero().flatten().tolist()
        raise ValueError(f'classes {empty[:10]} have no image, so no long-tailed set of all classes can be made')
    counts = long_tailed_counts(n_max, num_classes, imbalance_ratio, profile)
    short = (counts > available).nonzero().flatten().tolist()
    if short:
        c = short[0]
        raise ValueError(
            f'n_max={n_max}, imbalance_ratio={imbalance_ratio} and profile={profile!r} ask for {int(counts[c])} images '
            f'of class {c}, which has {int(available[c])}; n_max={int(available.min())} is always possible')
    chosen = [_shuffled(targets, c, seed)[:n] for c, n in enumerate(counts.tolist())]
    return ImageSubset(dataset, torch.cat(chosen).sort().values)


def split_indices(
        targets: Sequence[int] | Tensor,
        fraction: float,
        seed: int = 0,
) -> tuple[Tensor, Tensor]:
    """Split images into two parts, class by class.

    Args:
        targets: Labels, (N,).
        fraction: Share of each class that goes to the second part, in (0, 1). A class of two or more images gives at
            least one and keeps at least one. A class with one image keeps it.
        seed: Chooses the images.

    Returns:
        Indices of the first and of the second part, each ascending.

    Raises:
        ValueError: If ``fraction`` is out of range.
    """
    check_range('fraction', fraction, 0, 1, low_open=True, high_open=True)
    targets = read_labels(targets)
    held_out = torch.zeros(len(targets), dtype=torch.bool, device='cpu')
    for c in targets.unique().tolist():
        images = _shuffled(targets, c, seed)
        wanted = min(max(round(fraction * len(images)), 1), len(images) - 1)
        held_out[images[:wanted]] = True
    return (~held_out).nonzero().flatten(), held_out.nonzero().flatten()


def split_validation(dataset: Any, fraction: float, seed: int = 0) -> tuple[ImageSubset, ImageSubset]:
    """Training and validation part of a dataset, stratified, see :func:`split_indices`."""
    train, val = split_indices(get_targets(dataset), fraction, seed)
    return ImageSubset(dataset, train), ImageSubset(dataset, val)


def _shuffled(targets: Tensor, c: int, seed: int) -> Tensor:
    """Images of class c in an order that depends on (seed, c) and the dataset only."""
    images = (targets == c).nonzero().flatten()
    generator = torch.Generator().manual_seed(int(np.random.SeedSequence((seed, c)).generate_state(1, np.uint64)[0]))
    return images[torch.randperm(len(images), generator=generator, device='cpu')]

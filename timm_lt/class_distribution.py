"""How many training images each class has, and what follows from it: the one object that all parts share."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ._dataset_labels import get_class_names, get_targets
from ._labels import check_label_range, read_labels
from ._validate import check_class_counts, check_option, check_range, check_whole

SPLIT_RULES = ('gt100_lt20', 'ge100_le20')
SPLIT_NAMES = ('many', 'medium', 'few')


class ClassDistribution:
    """Training images per class.

    Args:
        class_counts: Images per class, (C,), each >= 0; a class with none is allowed here and refused by the losses.
            A mapping, a ``collections.Counter``, timm's class statistics and a pandas Series (``value_counts()``) carry
            their labels and are read by them. Labels that are names need ``class_names``.
        class_names: Names of the classes in label order, C of them, or None.

    Examples:
        >>> dist = ClassDistribution.from_targets([0, 0, 0, 1, 1, 2])
        >>> dist.counts.tolist(), dist.imbalance_ratio
        ([3, 2, 1], 3.0)
    """

    def __init__(self, class_counts: Any, class_names: Iterable[str] | None = None) -> None:
        if class_names is None and isinstance(class_counts, Mapping):
            class_names = class_counts.get('class_names') if 'pos_counts' in class_counts else None
        self.class_names = None if class_names is None else [str(n) for n in class_names]
        self.counts: Tensor = check_class_counts(class_counts, min_count=0, class_names=self.class_names)
        if not self.num_samples:
            raise ValueError(f'no class has an image: the counts of all {self.num_classes} classes are 0')
        if self.class_names is not None and len(self.class_names) != self.num_classes:
            raise ValueError(f'there are {self.num_classes} classes, but {len(self.class_names)} class_names')

    @classmethod
    def from_targets(
            cls,
            targets: Iterable[int] | Tensor,
            num_classes: int | None = None,
            class_names: Iterable[str] | None = None,
    ) -> 'ClassDistribution':
        """Count labels.

        Args:
            targets: Labels of the training images, (N,), each in [0, C), of any integer type; see
                :func:`timm_lt._labels.read_labels`.
            num_classes: C; None takes the largest label + 1 (or the number of names).
            class_names: Names of the classes.

        Raises:
            ValueError: If there is no label, a label is outside [0, C), or labels are not whole numbers.
        """
        targets = read_labels(targets)
        class_names = None if class_names is None else list(class_names)
        if num_classes is None:
            num_classes = len(class_names) if class_names else int(targets.max()) + 1
        num_classes = check_whole('num_classes', num_classes, 1)
        check_label_range(targets, num_classes)
        return cls(torch.bincount(targets, minlength=num_classes), class_names)

    @classmethod
    def from_masks(
            cls,
            masks: Iterable[Any],
            num_classes: int,
            ignore_index: int = 255,
            class_names: Iterable[str] | None = None,
    ) -> 'ClassDistribution':
        """Count the pixels of label masks, for :class:`timm_lt.losses.DenseLoss`.

        Args:
            masks: Labels of each image, of any shape: tensors, arrays or PIL images of whole numbers.
            num_classes: C.
            ignore_index: Label of the pixels that are left out.
            class_names: Names of the classes.

        Raises:
            ValueError: If no pixel is left, or a label is outside [0, C).
        """
        counts = torch.zeros(num_classes, dtype=torch.int64, device='cpu')
        for mask in masks:
            values = mask if isinstance(mask, Tensor) else np.array(mask)
            labels = torch.as_tensor(values, device='cpu').long().flatten()
            labels = labels[labels != ignore_index]
            check_label_range(labels, num_classes)
            counts += torch.bincount(labels, minlength=num_classes)
        return cls(counts, class_names)

    @classmethod
    def from_dataset(cls, dataset: Any, num_classes: int | None = None) -> 'ClassDistribution':
        """Count the labels of a map-style dataset without decoding an image, see :func:`timm_lt.data.get_targets`."""
        names = get_class_names(dataset)
        if num_classes is not None and names is not None and len(names) != num_classes:
            names = None
        return cls.from_targets(get_targets(dataset), num_classes, names)

    @classmethod
    def from_json(cls, path: str | Path) -> 'ClassDistribution':
        """Read timm's class-stats JSON (``pos_counts``, ``num_samples``; ours adds ``class_names``) or a plain list.

        Raises:
            ValueError: If the file is no JSON, lacks the entries, or holds other than counts; names the file.
        """
        path = Path(path)
        try:
            stats = json.loads(path.read_text())
        except json.JSONDecodeError as e:
            raise ValueError(f'class-stats file {path} is not JSON: {e}') from e
        if isinstance(stats, list):
            stats = {'pos_counts': stats}
        if not isinstance(stats, dict) or 'pos_counts' not in stats:
            raise ValueError(
                f"class-stats file {path} needs a 'pos_counts' list and 'num_samples', as timm writes them")
        try:
            return cls(stats)
        except (TypeError, ValueError) as e:
            raise ValueError(f'class-stats file {path}: {e}') from e

    def to_dict(self) -> dict[str, Any]:
        """timm's class-stats entries, with the class names where known."""
        stats: dict[str, Any] = {'pos_counts': self.counts.tolist(), 'num_samples': self.num_samples}
        if self.class_names is not None:
            stats['class_names'] = self.class_names
        return stats

    def to_json(self, path: str | Path) -> None:
        """Write timm's class-stats JSON; the file appears whole or not at all."""
        from ._files import write_text
        write_text(path, json.dumps(self.to_dict(), indent=1) + '\n')

    @property
    def num_classes(self) -> int:
        return self.counts.numel()

    @property
    def num_samples(self) -> int:
        return int(self.counts.sum())

    @property
    def priors(self) -> Tensor:
        """Share of each class among the training images, (C,), float64."""
        return self.counts.double() / max(self.num_samples, 1)

    @property
    def imbalance_ratio(self) -> float:
        """Largest over smallest class size, >= 1; classes without images are left out."""
        present = self.counts[self.counts > 0]
        return int(present.max()) / int(present.min())

    @property
    def empty_classes(self) -> list[int]:
        return (self.counts == 0).nonzero().flatten().tolist()

    def require_images(self) -> None:
        """Raise a ValueError naming the classes without a training image."""
        if self.empty_classes:
            names = [self.class_names[c] if self.class_names else c for c in self.empty_classes[:10]]
            raise ValueError(
                f'{len(self.empty_classes)} of {self.num_classes} classes have no training image: {names}; '
                f'add images or leave these classes out of the label set')

    def splits(self, rule: str = 'gt100_lt20') -> dict[str, Tensor]:
        """Masks (C,) of the many-, medium- and few-shot classes.

        Args:
            rule: ``'gt100_lt20'``: many n > 100, few n < 20 (most papers). ``'ge100_le20'``: many n >= 100, few
                n <= 20 (OLTR, CC-SAM). ``'MANY,FEW'``, e.g. ``'1000,200'``: own thresholds, many n > MANY, few n < FEW.
                ``'thirds'``: the largest, middle and smallest third of the classes.
        """
        n = self.counts
        if rule == 'gt100_lt20':
            many, few = n > 100, n < 20
        elif rule == 'ge100_le20':
            many, few = n >= 100, n <= 20
        elif rule == 'thirds':
            order = torch.argsort(n, descending=True, stable=True)
            many, few = torch.zeros_like(n, dtype=torch.bool), torch.zeros_like(n, dtype=torch.bool)
            third = round(len(n) / 3)
            many[order[:third]] = True
            few[order[len(n) - third:]] = True
        else:
            many_above, few_below = parse_split_thresholds(rule)
            many, few = n > many_above, n < few_below
        return {'many': many, 'medium': ~(many | few), 'few': few}

    def head(self, eta: int) -> Tensor:
        """Mask (C,) of the head classes, n_c >= eta: those that :meth:`tail` leaves."""
        return ~self.tail(eta)

    def tail(self, eta: int) -> Tensor:
        """Mask (C,) of the tail classes, n_c < eta (ImbSAM, SSE-SAM)."""
        check_range('eta', eta, 0)
        return self.counts < eta

    def size_groups(self, num_groups: int) -> Tensor:
        """Group of each class, (C,), int64: classes by size, cut into ``num_groups`` even groups, 0 the largest."""
        check_option('num_groups', num_groups, range(1, self.num_classes + 1))
        order = torch.argsort(self.counts, descending=True, stable=True)
        groups = torch.empty(self.num_classes, dtype=torch.int64, device='cpu')
        groups[order] = torch.arange(self.num_classes, device='cpu') * num_groups // self.num_classes
        return groups

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ClassDistribution) and torch.equal(self.counts, other.counts)

    def __repr__(self) -> str:
        return (
            f'ClassDistribution({self.num_classes} classes, {self.num_samples} images, '
            f'imbalance ratio {self.imbalance_ratio:g})')


def parse_split_thresholds(rule: str) -> tuple[float, float]:
    """Thresholds of a ``'MANY,FEW'`` rule."""
    try:
        many_above, few_below = (float(part) for part in str(rule).split(','))
    except ValueError:
        raise ValueError(
            f"split rule must be one of {SPLIT_RULES + ('thirds',)} or 'MANY,FEW' such as '1000,200', "
            f'got {rule!r}') from None
    if few_below > many_above + 1:
        raise ValueError(f"split rule 'MANY,FEW' needs FEW <= MANY + 1, got {rule!r}")
    return many_above, few_below

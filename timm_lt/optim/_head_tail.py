"""The split of a batch into head and tail classes, shared by ImbSAM and SSE-SAM."""

from typing import Any

import torch
from torch import Tensor

from .._types import ClassCounts, ParamsT
from .._validate import check_class_counts, check_range
from .engine import SharpnessAware


class HeadTail(SharpnessAware):
    """Base of methods with two parts: 0, the head classes with ``n_c >= eta``, and 1, the tail with ``n_c < eta``.

    Args:
        params: Parameters or groups.
        class_counts: Training images per class, (C,), each >= 1.
        eta: Classes with fewer training images are tail.
        tail_weight: Factor on the loss of tail samples.
        options: See :class:`SharpnessAware`, and the options of the base optimizer.
    """

    class_aware = True

    def __init__(
            self,
            params: ParamsT,
            class_counts: ClassCounts | None,
            eta: int,
            tail_weight: float = 1.0,
            **options: Any,
    ) -> None:
        counts = check_class_counts(class_counts, who=type(self).__name__)
        self.num_classes = len(counts)
        self.smallest, self.largest = int(counts.min()), int(counts.max())
        self.eta = check_range('eta', eta, 0)
        tail = counts < eta
        self._table = torch.stack([~tail, tail]).double() * torch.tensor([[1.0], [tail_weight]], dtype=torch.float64)
        super().__init__(params, **options)
        self.warn_if_idle()
        if self.idle_because() is None:
            self._warn_once(self.missing_part())

    @property
    def has_head(self) -> bool:
        return self.largest >= self.eta

    @property
    def has_tail(self) -> bool:
        return self.smallest < self.eta

    def missing_part(self) -> str | None:
        """Why there is no head or no tail class; None if there are both."""
        if not self.has_tail:
            return f'eta={self.eta} leaves no tail class, because the smallest has {self.smallest} training images'
        if not self.has_head:
            return (
                f'eta={self.eta} leaves no head class, because the largest has {self.largest} training images: '
                f'all classes are treated as tail')
        return None

    def part_weights(self, labels: Tensor) -> Tensor:
        return weights_of_classes(self._table, labels, type(self).__name__)


def weights_of_classes(table: Tensor, labels: Tensor, who: str) -> Tensor:
    """Columns of a (P, C) table for the labels, (P, B).

    Raises:
        ValueError: If a label has no column, because the class counts are not those of the data set.
    """
    if len(labels) and (int(labels.max()) >= table.shape[1] or int(labels.min()) < 0):
        raise ValueError(
            f'{who}: class_counts has {table.shape[1]} entries, but the batch has labels from {int(labels.min())} to '
            f'{int(labels.max())}; pass one count per class')
    return table[:, labels]

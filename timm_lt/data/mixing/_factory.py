"""Mixings by name."""

from typing import Any

from ..._registry import MIXINGS, call_factory
from ..._types import ClassCounts
from ._base import BatchMixing


def list_mixings(filter: str = '') -> list[str]:
    """Names of the mixings, sorted; ``filter`` is a wildcard such as ``'*mix'``."""
    return MIXINGS.names(filter)


def create_mixing(name: str, class_counts: ClassCounts, **kwargs: Any) -> BatchMixing:
    """Create a mixing by name.

    Args:
        name: One of :func:`list_mixings`.
        class_counts: Training images per class, (C,), each >= 1.
        **kwargs: Options of the mixing.

    Raises:
        ValueError: If the name is unknown or an option out of range.
        TypeError: If the mixing has no such option.

    Examples:
        >>> mixing = create_mixing('remix', [500, 50, 5])
        >>> images, target = mixing(torch.randn(4, 3, 8, 8), torch.tensor([0, 0, 1, 2]))
        >>> target.shape
        torch.Size([4, 3])
    """
    return call_factory(MIXINGS.info(name), 'mixing', class_counts, **kwargs)

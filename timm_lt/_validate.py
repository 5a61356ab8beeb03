"""Checks of user input. Each raises with the name, the rule and the value, and says what to do."""

import difflib
import numbers
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ._labels import read_counts
from ._text import counted

REDUCTIONS = ('mean', 'none', 'sum')


def nearest_names(name: str, known: Iterable[str], most: int = 3) -> str:
    """A clause such as ``Did you mean 'sam', 'asam'?``, or the known names when none is near."""
    known = sorted(known)
    close = difflib.get_close_matches(str(name), known, n=most, cutoff=0.5)
    if close:
        return 'Did you mean ' + ' or '.join(repr(c) for c in close) + '?'
    return 'Known: ' + ', '.join(known) + '.'


def check_class_counts(
        class_counts: Any,
        num_classes: int | None = None,
        *,
        min_count: int = 1,
        class_names: Sequence[str] | None = None,
        who: str = '',
) -> torch.Tensor:
    """Return the counts as an int64 CPU tensor of shape (C,).

    Args:
        class_counts: Training images per class: whole numbers in label order, a ``ClassDistribution``, or counts that
            carry their labels, see :func:`timm_lt._labels.read_counts`.
        num_classes: Required length, not checked if None.
        min_count: Smallest count allowed for a class.
        class_names: Names in label order, for counts by name.
        who: What asks for the counts, for the message.

    Raises:
        TypeError: If counts are missing or not numbers.
        ValueError: If shape, length or a value is not allowed.
    """
    prefix = f'{who}: ' if who else ''
    if class_counts is None:
        raise TypeError(
            f'{prefix}class_counts is missing; pass the number of training images of each class, '
            f'e.g. class_counts=ClassDistribution.from_targets(targets).counts')
    if isinstance(getattr(class_counts, 'counts', None), torch.Tensor):  # a ClassDistribution
        class_counts = class_counts.counts
    counts = read_counts(class_counts, num_classes, class_names, f'{prefix}class_counts')
    if counts.ndim != 1 or counts.numel() == 0:
        raise ValueError(f'{prefix}class_counts must be one-dimensional and not empty, got shape {tuple(counts.shape)}')
    if num_classes is not None and counts.numel() != num_classes:
        raise ValueError(f'{prefix}class_counts has {counts.numel()} entries, but there are {num_classes} classes')
    low = (counts < min_count).nonzero().flatten().tolist()
    if low:
        raise ValueError(
            f'{prefix}every class needs at least {counted(min_count, "training image")}; '
            f'classes {low[:10]} have {[int(counts[c]) for c in low[:10]]}. '
            f'Remove them from the label set or add images.')
    return counts


def check_reduction(reduction: str) -> str:
    if reduction not in REDUCTIONS:
        raise ValueError(f'reduction must be one of {REDUCTIONS}, got {reduction!r}')
    return reduction


def check_range(
        name: str,
        value: float,
        low: float | None = None,
        high: float | None = None,
        *,
        low_open: bool = False,
        high_open: bool = False,
) -> float:
    """Return ``value`` if it is a finite number inside the interval, else raise a ValueError or TypeError."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise TypeError(f'{name} must be a number, got {value!r}')
    below = low is not None and (value <= low if low_open else value < low)
    above = high is not None and (value >= high if high_open else value > high)
    if value != value or below or above or value in (float('inf'), float('-inf')):
        left = '(' if low_open or low is None else '['
        right = ')' if high_open or high is None else ']'
        raise ValueError(
            f'{name} must be in {left}{"-inf" if low is None else low}, {"inf" if high is None else high}{right}, '
            f'got {value}')
    return value


def check_numbers(name: str, values: Any, low: float | None = None) -> tuple[float, ...]:
    """Return ``values`` as floats if they are one or more finite numbers >= ``low``."""
    listed = list(values) if isinstance(values, Iterable) and not isinstance(values, str) else []
    if not listed:
        raise ValueError(f'{name} must be a list of one or more numbers, got {values!r}')
    return tuple(float(check_range(f'each of {name}', value, low)) for value in listed)


def check_whole(name: str, value: Any, least: int) -> int:
    """Return ``value`` as an int if it is a whole number >= ``least``, else raise a ValueError or TypeError."""
    if isinstance(value, bool) or not hasattr(value, '__index__') and not isinstance(value, numbers.Real):
        raise TypeError(f'{name} must be a whole number >= {least}, got {value!r}')
    if value in (float('inf'), float('-inf')) or value != value or value != int(value) or value < least:
        raise ValueError(f'{name} must be a whole number >= {least}, got {value}')
    return int(value)


def check_rho(rho: float, name: str = 'rho') -> float:
    """A perturbation radius: a finite number >= 0, where 0 switches the perturbation off."""
    return check_range(name, rho, 0)


def check_option(name: str, value: Any, options: Sequence[Any]) -> Any:
    if value not in options:
        raise ValueError(f'{name} must be one of {tuple(options)}, got {value!r}')
    return value

"""Labels and counts as users hold them: tensors, arrays, columns, lists, mappings.

A label is a whole number, of any integer type. Floating-point labels are refused because a column becomes floating
point where labels are missing. Booleans are refused because a mask is no class number.
"""

import numbers
from collections.abc import Iterable, Mapping, Sequence, Set, ValuesView
from typing import Any

import numpy as np
import torch
from torch import Tensor

MAX_CLASSES = 10**7  # beyond it a "label" is an identifier, and a count for each would fill the memory
_MISSING = ('NAType', 'NaTType')


def read_labels(labels: Any, name: str = 'targets', *, allow_empty: bool = False) -> Tensor:
    """Labels as an int64 tensor on the CPU, (N,), in the order of their positions.

    Args:
        labels: Whole numbers of any integer type, in a tensor, an array, a sequence or an iterator, also of 0-d
            tensors. A pandas or Arrow column works too; its index is not read.
        name: Name of the argument, for the message.
        allow_empty: Whether there may be no label.

    Raises:
        ValueError: If a label is missing or no whole number, or the shape is not (N,).

    Examples:
        >>> read_labels(np.array([0, 2], dtype=np.uint16)).tolist()
        [0, 2]
    """
    if isinstance(labels, torch.utils.data.Dataset) or labels is None:
        raise ValueError(
            f'{name} must be the labels of the training images, whole numbers (N,), got {labels!r:.80}; '
            f'timm_lt.data.get_targets(dataset) reads those of a dataset')
    try:
        tensor = whole_numbers(labels, name)
    except TypeError as e:
        raise ValueError(f'{e}. Pass the labels of the training images as class numbers 0, 1, 2, ...') from None
    if tensor.ndim != 1 or not (allow_empty or tensor.numel()):
        raise ValueError(f'{name} must be one-dimensional and not empty, got shape {tuple(tensor.shape)}')
    return tensor


def read_counts(
        counts: Any,
        num_classes: int | None = None,
        class_names: Sequence[str] | None = None,
        name: str = 'class_counts',
) -> Tensor:
    """Counts per class as an int64 tensor on the CPU, in label order.

    Labels decide where counts carry them, in any order. Such counts are a mapping ``{label: count}``, a
    ``collections.Counter``, or a pandas Series whose index holds the labels (``value_counts()``). A label that has no
    count gets 0. Names as labels need ``class_names``. Position decides in everything else.

    Args:
        counts: The counts, or timm's class statistics, ``{'pos_counts': [...], 'num_samples': N}``.
        num_classes: Number of classes, where it is known.
        class_names: Names in label order, where they are known.
        name: Name of the argument, for the message.

    Raises:
        TypeError: If the counts are no numbers or have no order.
        ValueError: If a count is missing or no whole number, or a label is unknown or comes twice.

    Examples:
        >>> read_counts({2: 30, 0: 5}).tolist()
        [5, 0, 30]
    """
    if isinstance(counts, Mapping) and 'pos_counts' in counts:
        counts = _pos_counts(counts, name)
    if isinstance(counts, Mapping):
        return _by_label(list(counts.keys()), list(counts.values()), num_classes, class_names, name)
    index = getattr(counts, 'index', None)
    if hasattr(counts, 'to_numpy') and index is not None and not callable(index):
        if counts.ndim != 1:
            raise TypeError(f'{name} is a table with the columns {list(counts.columns)}; pass the column of the counts')
        return _by_label(list(index), counts.to_numpy(), num_classes, class_names, name)
    if isinstance(counts, (Set, ValuesView)):
        raise TypeError(
            f'{name} must be in label order, but {type(counts).__name__} has another order or none; '
            f'pass the mapping {{label: count}} itself')
    return whole_numbers(counts, name, whole_floats=True)


def whole_numbers(values: Any, name: str, *, whole_floats: bool = False) -> Tensor:
    """Whole numbers of any type as an int64 tensor on the CPU, in their shape.

    Args:
        values: Numbers, see :func:`read_labels`.
        name: Name of the argument, for the message.
        whole_floats: Whether to take floating-point numbers without a fraction.

    Raises:
        TypeError: If the values are no whole numbers by their type.
        ValueError: If a value is missing, has a fraction or does not fit.
    """
    array = _as_array(values, name)
    if array.dtype.kind == 'O':
        array = _from_objects(array, name)
    if array.dtype.kind == 'f':
        _check_missing(int(np.isnan(array).sum()), array.size, name)
        if not whole_floats:
            raise TypeError(
                f'{name} must be whole numbers, got dtype {array.dtype}; convert them, e.g. by .astype("int64")')
        if not (np.isfinite(array) & (array == np.round(array))).all():
            raise ValueError(f'{name} must be whole numbers, got {array.ravel()[:8].tolist()}')
    elif array.dtype.kind not in 'iu':
        example = array.ravel()[:3].tolist()
        raise TypeError(f'{name} must be whole numbers, got dtype {array.dtype}, e.g. {example}')
    if array.size and float(array.max()) >= 2.0**63:
        raise ValueError(f'{name} must be below 2**63, got {array.max()}')
    return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64)))


def _as_array(values: Any, name: str) -> np.ndarray:
    if isinstance(values, Tensor):
        values = values.detach()
        if values.is_meta:
            raise TypeError(f'{name} must have values, got a tensor on the meta device')
        values = values.cpu()
        return (values.double() if values.is_floating_point() else values).numpy()
    if isinstance(values, np.ma.MaskedArray):
        _check_missing(int(np.ma.getmaskarray(values).sum()), values.size, name)
        return np.asarray(values.data)
    if isinstance(values, (str, bytes, Mapping, Set)) or not isinstance(values, Iterable):
        raise TypeError(f'{name} must be a sequence of whole numbers, got {values!r:.80}')
    if not hasattr(values, '__array__'):
        values = [v.item() if isinstance(v, Tensor | np.generic) and v.ndim == 0 else v for v in values]
        values = values or np.empty(0, dtype=np.int64)
    try:
        return np.asarray(values)
    except (TypeError, ValueError, RuntimeError, OverflowError) as e:
        raise TypeError(f'{name} must be a sequence of whole numbers, got {values!r:.80}') from e


def _from_objects(array: np.ndarray, name: str) -> np.ndarray:
    """The numbers of an object array as an array of numbers."""
    flat = array.ravel().tolist()
    _check_missing(sum(_is_missing(v) for v in flat), len(flat), name)
    wrong = [v for v in flat if isinstance(v, (bool, np.bool_)) or not isinstance(v, numbers.Real)]
    if wrong:
        raise TypeError(f'{name} must be whole numbers, got e.g. {wrong[:3]!r:.80}')
    try:
        kind = np.int64 if all(isinstance(v, numbers.Integral) for v in flat) else np.float64
        return np.array(flat, dtype=kind).reshape(array.shape)
    except OverflowError:
        raise ValueError(f'{name} must be below 2**63, got {max(flat, key=abs)}') from None


def _is_missing(value: Any) -> bool:
    return value is None or type(value).__name__ in _MISSING or isinstance(value, float) and value != value


def _check_missing(missing: int, total: int, name: str) -> None:
    if missing:
        raise ValueError(f'{name}: {missing} of {total} values are missing; fill them in, or drop these entries')


def _by_label(
        labels: list, counts: Any, num_classes: int | None, class_names: Sequence[str] | None, name: str) -> Tensor:
    """Counts in label order from parallel labels and counts."""
    counts = whole_numbers(counts, name, whole_floats=True)
    if labels and all(isinstance(label, str) for label in labels):
        labels = _numbers_of_names(labels, class_names, name)
    numbered = read_labels(labels, f'the labels of {name}')
    if numbered.unique().numel() != len(numbered):
        raise ValueError(f'{name} has several counts for a label: {sorted(labels)[:10]}')
    size = num_classes if num_classes is not None else len(class_names) if class_names else int(numbered.max()) + 1
    check_label_range(numbered, size, f'the labels of {name}')
    return torch.zeros(size, dtype=torch.int64, device='cpu').index_put_((numbered,), counts)


def check_label_range(labels: Tensor, num_classes: int, name: str = 'labels') -> None:
    """Raise a ValueError unless all labels, (N,), N >= 1, are in [0, C)."""
    low, high = int(labels.min()), int(labels.max())
    if num_classes > MAX_CLASSES:
        raise ValueError(
            f'{name} must be class numbers 0, 1, 2, ..., got labels up to {high}; number the classes without gaps')
    if low < 0 or high >= num_classes:
        raise ValueError(
            f'{name} must be in [0, {num_classes - 1}] for {num_classes} classes, got labels from {low} to {high}')


def _numbers_of_names(labels: list[str], class_names: Sequence[str] | None, name: str) -> list[int]:
    if class_names is None:
        raise ValueError(
            f'{name} is given by class name, and the order of the classes is not known; pass '
            f'ClassDistribution({name}, class_names=[...]) with the names in label order')
    number = {str(n): i for i, n in enumerate(class_names)}
    unknown = [label for label in labels if label not in number]
    if unknown:
        raise ValueError(f'{name} has counts for {unknown[:10]}, which are not among the class names')
    return [number[label] for label in labels]


def _pos_counts(stats: Mapping, name: str) -> Any:
    """The counts in timm's class statistics."""
    counts, num_samples = stats['pos_counts'], stats.get('num_samples')
    if counts is None:
        raise TypeError(f"{name} is missing: 'pos_counts' holds nothing")
    if num_samples is not None:
        total = int(whole_numbers(counts, name, whole_floats=True).sum())
        if total != num_samples:
            raise ValueError(
                f'pos_counts add up to {total}, but num_samples is {num_samples}; it describes images with several '
                f'labels (or none), which have no class sizes')
    return counts

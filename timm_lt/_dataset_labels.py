"""Labels and class names of a dataset, read without decoding its images."""

import logging
import numbers
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from ._labels import read_labels, whole_numbers
from ._seeding import seeded

__all__ = ['get_class_names', 'get_targets']

_logger = logging.getLogger(__name__)

KNOWN_PACKAGES = ('timm', 'timm_lt', 'torch', 'torchvision')  # their items have the labels that their attributes say
PROBED_CLASSES = PROBED_PLACES = 32  # items of other datasets that are compared with the labels found


def get_targets(dataset: Any) -> Tensor:
    """Label of every item of a map-style dataset, that which ``dataset[i]`` gives, without decoding all images.

    Datasets of this package, of timm (folders, tar files, ``hfds/...``) and of torchvision are known. So are their
    subsets and concatenations, and anything with an attribute ``targets``. A dataset of another type may renumber the
    labels that it wraps. At most 64 of its items are compared with the labels found. If one has another label, a
    warning says so, and all items are read.

    Args:
        dataset: Map-style dataset of (image, label).

    Returns:
        Labels, (N,), int64.

    Raises:
        TypeError: If the dataset streams, or its labels cannot be read without its images.
        ValueError: If an item has no label, or labels are not whole numbers.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f'{type(dataset).__name__} streams its images; class counts and samplers need a map-style dataset: '
            f"use 'hfds/...' instead of 'hfids/...', or a folder")
    targets = _find_targets(dataset)
    return targets if _has_known_items(dataset) else _as_items_say(dataset, targets)


def _find_targets(dataset: Any) -> Tensor:
    who, own = type(dataset).__name__, vars(dataset).get('targets') if hasattr(dataset, '__dict__') else None
    if isinstance(dataset, Subset) and own is None:
        return get_targets(dataset.dataset)[whole_numbers(dataset.indices, f'indices of {who}')]
    if isinstance(dataset, ConcatDataset) and own is None:
        return torch.cat([get_targets(d) for d in dataset.datasets])
    targets = _raw_targets(dataset)
    if targets is None:
        raise TypeError(
            f'the labels of {who} cannot be read without its images; '
            f'give it an attribute `targets` with the label of every image')
    transform = getattr(dataset, 'target_transform', None)
    if transform is not None:
        targets = [transform(t) for t in _as_list(targets)]
    if not hasattr(targets, '__array__'):
        targets = list(targets)
        if not targets:
            raise ValueError(f'{who} has no images')
        missing = sum(t is None for t in targets)
        if missing:
            raise ValueError(f'{who}: {missing} of {len(targets)} images have no label')
    return read_labels(targets, f'the labels of {who}', allow_empty=True)


def _raw_targets(dataset: Any) -> Any:
    reader = getattr(dataset, 'reader', None)
    if hasattr(dataset, 'loader') and _has_known_items(dataset) and hasattr(dataset, 'samples'):
        return [sample[1] for sample in dataset.samples]  # torchvision's folders read these, not `targets`
    for holder in (dataset, reader):
        # torchvision: targets, or labels (SVHN), or _labels (Food101, Flowers102, ...)
        for name in ('targets', 'labels', '_labels'):
            value = getattr(holder, name, None)
            if value is not None and not callable(value) and len(value) == len(dataset):
                return value
    if reader is not None and hasattr(reader, 'iter_targets'):
        return _hfds_column(reader) if _is_plain_column(reader) else list(reader.iter_targets())
    for holder in (reader, dataset):
        samples = getattr(holder, 'samples', None)
        if samples is not None and len(samples) == len(dataset):
            return [sample[1] for sample in samples]
    inner = getattr(dataset, 'dataset', None)
    if inner is not None and hasattr(inner, '__len__') and len(inner) == len(dataset):
        return get_targets(inner)  # a wrapper that changes images only
    return None


def _is_plain_column(reader: Any) -> bool:
    return (
        not getattr(reader, 'remap_class', True) and not getattr(reader, 'target_keys', True)
        and getattr(reader, 'label_key', None) in reader.dataset.column_names)


def _hfds_column(reader: Any) -> Any:
    # the whole column at once: iter_targets goes row by row
    key = reader.label_key
    return reader.dataset.select_columns([key]).with_format(None)[:][key]


def _as_list(targets: Any) -> list:
    return targets.tolist() if hasattr(targets, 'tolist') else list(targets)


# Datasets of other types: are the labels found those of the items?


def _has_known_items(dataset: Any) -> bool:
    """Whether the items of the dataset are known to have the labels that its attributes say."""
    owner = next((c for c in type(dataset).__mro__ if '__getitem__' in vars(c)), None)
    if owner is None:
        return True  # there is no item to compare
    transformed = getattr(getattr(getattr(dataset, 'reader', None), 'dataset', None), 'format', None)
    if isinstance(transformed, dict) and transformed.get('type') == 'custom':
        return False  # a transform of Hugging Face datasets may change labels
    return owner.__module__.split('.')[0] in KNOWN_PACKAGES


def _as_items_say(dataset: Any, targets: Tensor) -> Tensor:
    """``targets`` if some items have these labels, else the labels of all items; no generator is changed."""
    who = type(dataset).__name__
    with seeded((0,)):
        if len(targets) == len(dataset) and all(_has_label(dataset, i, int(targets[i])) for i in _places(targets)):
            return targets
        _logger.warning(
            '%s gives other labels than its attributes, or the dataset that it wraps, say; all %d items are read for '
            'their labels. An attribute `targets` with the labels of its items makes this unnecessary.',
            who, len(dataset))
        return read_labels([_plain(dataset[i][1]) for i in range(len(dataset))], f'the labels of the items of {who}')


def _places(targets: Tensor) -> list[int]:
    """The first item of each class (of classes at even distances if there are many), and items at even distances."""
    if not len(targets):
        return []
    _, first = np.unique(targets.numpy(), return_index=True)
    classes = np.linspace(0, len(first) - 1, min(PROBED_CLASSES, len(first))).astype(int)
    spread = np.linspace(0, len(targets) - 1, min(PROBED_PLACES, len(targets))).astype(int)
    return sorted({int(first[c]) for c in classes} | {int(i) for i in spread})


def _has_label(dataset: Any, index: int, label: int) -> bool:
    """Whether an item has this label; True for an item that cannot be read, because the images are checked later."""
    try:
        seen = dataset[index][1]
    except Exception:  # noqa: BLE001  whatever a user's dataset raises
        return True
    seen = _plain(seen)
    return isinstance(seen, numbers.Integral) and not isinstance(seen, bool) and int(seen) == label


def _plain(label: Any) -> Any:
    """A label in an array or tensor of one element as that element."""
    size = label.numel() if isinstance(label, Tensor) else getattr(label, 'size', 0)
    return label.item() if size == 1 else label


def get_class_names(dataset: Any) -> list[str] | None:
    """Class names in label order, or None where the dataset has none."""
    if isinstance(dataset, Subset):
        own = getattr(dataset, 'class_names', None)
        return list(own) if own is not None else get_class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return _common_names([get_class_names(d) for d in dataset.datasets])
    for name in ('class_names', 'classes'):
        names = getattr(dataset, name, None)
        if names is not None and not callable(names):
            return [str(n) for n in names]
    for holder in (getattr(dataset, 'reader', None), dataset):
        index = getattr(holder, 'class_to_idx', None)
        if index and sorted(index.values()) == list(range(len(index))):
            return [str(name) for name, _ in sorted(index.items(), key=lambda item: item[1])]
    inner = getattr(dataset, 'dataset', None)
    return get_class_names(inner) if inner is not None else None


def _common_names(parts: list[list[str] | None]) -> list[str] | None:
    """The names of the datasets of a concatenation, where one list continues all others."""
    named = [names for names in parts if names is not None]
    if not named:
        return None
    longest = max(named, key=len)
    for names in named:
        if names != longest[:len(names)]:
            raise ValueError(
                f'the datasets of a ConcatDataset number their classes differently: {names[:5]} and {longest[:5]}; '
                f'give them one numbering, e.g. by target_transform')
    return longest

"""Labels and class names of a dataset, read without decoding an image."""

import logging
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, IterableDataset, Subset

from .seeding import seeded

_logger = logging.getLogger(__name__)

# classes whose samples have the labels that their attributes say
KNOWN_PACKAGES = ('torch', 'torchvision', 'timm', 'timm_lt')
PROBES = 64  # samples that are compared besides one of each class

__all__ = ['get_class_names', 'get_targets']


def get_targets(dataset: Any) -> Tensor:
    """Label of every image of a map-style dataset, without decoding an image.

    Known are the datasets of this package, of timm (folders, tar files, ``hfds/...``) and of torchvision, subsets and
    concatenations of them, and anything with an attribute ``targets``.

    Args:
        dataset: Map-style dataset of (image, label).

    Returns:
        Labels, (N,), int64.

    Raises:
        TypeError: If the dataset streams, or its labels cannot be read without its images.
        ValueError: If an image has no label or labels are not whole numbers.
    """
    if isinstance(dataset, IterableDataset):
        raise TypeError(
            f'{type(dataset).__name__} streams its images; class counts and samplers need a map-style dataset: '
            f"use 'hfds/...' instead of 'hfids/...', or a folder")
    targets = _known_targets(dataset)
    return _checked(dataset, targets) if _may_renumber(dataset) else targets


def _known_targets(dataset: Any) -> Tensor:
    own = not isinstance(dataset, Subset | ConcatDataset) or _has_own_targets(dataset)
    if not own and isinstance(dataset, Subset):
        return get_targets(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.int64, device='cpu')]
    if not own:
        return torch.cat([get_targets(d) for d in dataset.datasets])
    targets = _raw_targets(dataset)
    if targets is None:
        raise TypeError(
            f'the labels of {type(dataset).__name__} cannot be read without its images; '
            f'give it an attribute `targets` with the label of every image')
    transform = getattr(dataset, 'target_transform', None)
    if transform is not None:
        targets = [transform(t) for t in _as_list(targets)]
    return _as_labels(targets, type(dataset).__name__)


def _has_own_targets(dataset: Any) -> bool:
    """A subset or concatenation of a user's class that says its labels itself."""
    return not _is_known(type(dataset)) and getattr(dataset, 'targets', None) is not None


def _is_known(kind: type) -> bool:
    return kind.__module__.split('.')[0] in KNOWN_PACKAGES


def _may_renumber(dataset: Any) -> bool:
    """Whether a user's class gives samples of another dataset, perhaps under other labels."""
    kind = type(dataset)
    owner = next((c for c in kind.__mro__ if '__getitem__' in vars(c)), None)
    if owner is None or _is_known(owner):
        return False
    if any(_is_known(c) and '__getitem__' in vars(c) for c in kind.__mro__ if c is not Dataset):
        return not _has_own_targets(dataset) or not isinstance(dataset, Subset | ConcatDataset)
    return _raw_targets(dataset, wrapped=False) is None


def _checked(dataset: Any, targets: Tensor) -> Tensor:
    """``targets`` if samples have these labels: one of each class and a few more; else the labels of all samples."""
    first = np.unique(targets.numpy(), return_index=True)[1].tolist()
    spread = np.linspace(0, len(targets) - 1, min(PROBES, len(targets))).astype(int).tolist()
    with seeded((0,)):
        if all(_label(dataset, i) in (None, int(targets[i])) for i in {*first, *spread}):
            return targets
        _logger.warning(
            '%s gives other labels than the dataset that it wraps; all %d samples are read for their labels. An '
            'attribute `targets` makes this unnecessary.', type(dataset).__name__, len(targets))
        labels = [dataset[i][1] for i in range(len(targets))]
    return _as_labels([int(label) if isinstance(label, Tensor) else label for label in labels], type(dataset).__name__)


def _label(dataset: Any, index: int) -> int | None:
    """Label that a dataset gives; None where the sample cannot be read."""
    try:
        return int(dataset[index][1])
    except Exception:  # noqa: BLE001  images are checked elsewhere
        return None


def _raw_targets(dataset: Any, wrapped: bool = True) -> Any:
    """Labels as the dataset keeps them, with ``wrapped`` also those of the dataset that it wraps; or None."""
    reader = getattr(dataset, 'reader', None)
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
    if wrapped and inner is not None and hasattr(inner, '__len__') and len(inner) == len(dataset):
        return get_targets(inner)
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


def _as_labels(targets: Any, who: str) -> Tensor:
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu().numpy()  # numpy compares integers of every type
    elif not isinstance(targets, np.ndarray):
        targets = list(targets)
        if not targets:
            raise ValueError(f'{who} has no images')
        missing = sum(t is None for t in targets)
        if missing:
            raise ValueError(f'{who}: {missing} of {len(targets)} images have no label')
        try:
            targets = np.asarray([t.item() if isinstance(t, Tensor | np.generic) else t for t in targets])
        except (TypeError, ValueError) as e:
            raise ValueError(f'{who}: labels must be whole numbers, got e.g. {targets[:3]}') from e
    if targets.ndim != 1 or targets.dtype.kind not in 'iu':
        raise ValueError(
            f'{who}: labels must be one whole number per image, got shape {targets.shape}, {targets.dtype}')
    if targets.size and int(targets.max()) > np.iinfo(np.int64).max:
        raise ValueError(f'{who}: labels must be below 2**63, got {targets.max()} ({targets.dtype})')
    return torch.from_numpy(targets.astype(np.int64))


def get_class_names(dataset: Any) -> list[str] | None:
    """Class names in label order, or None where the dataset has none."""
    if isinstance(dataset, Subset):
        own = getattr(dataset, 'class_names', None)
        return list(own) if own is not None else get_class_names(dataset.dataset)
    if isinstance(dataset, ConcatDataset):
        return get_class_names(dataset.datasets[0])
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

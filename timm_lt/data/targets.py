"""Labels and class names of a dataset, read without decoding an image."""

from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset

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
    if isinstance(dataset, Subset):
        return get_targets(dataset.dataset)[torch.as_tensor(dataset.indices, dtype=torch.int64)]
    if isinstance(dataset, ConcatDataset):
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


def _raw_targets(dataset: Any) -> Any:
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


def _as_labels(targets: Any, who: str) -> Tensor:
    if not isinstance(targets, Tensor):
        if not isinstance(targets, np.ndarray):
            targets = list(targets)
            if not targets:
                raise ValueError(f'{who} has no images')
            missing = sum(t is None for t in targets)
            if missing:
                raise ValueError(f'{who}: {missing} of {len(targets)} images have no label')
        try:
            targets = torch.as_tensor(np.asarray(targets))
        except (TypeError, ValueError) as e:
            raise ValueError(f'{who}: labels must be whole numbers, got e.g. {_as_list(targets)[:3]}') from e
    if targets.ndim != 1 or targets.is_floating_point() or targets.dtype == torch.bool:
        raise ValueError(
            f'{who}: labels must be one whole number per image, got shape {tuple(targets.shape)}, {targets.dtype}')
    return targets.detach().cpu().to(torch.int64)


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

"""Datasets by name: timm's own names, list files, folders of class folders, embedded digits."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm.data
from timm.data.readers import get_img_extensions

from .._validate import nearest_names
from .digits import Digits
from .list_file import ListFileDataset
from .subset import ImageSubset
from .targets import get_class_names

__all__ = ['create_dataset', 'find_split', 'numbers_its_own_classes']

DIGITS = 'timm_lt/digits'
FOLDERS = ('', 'folder', 'image_folder', 'imagefolder', 'torch/folder', 'torch/image_folder')
STREAMS = ('hfids', 'tfds', 'wds')
EXAMPLES = (
    DIGITS, 'folder', 'imagefolder', 'list/FILE', 'hfds/NAME', 'torch/cifar10', 'torch/cifar100', 'torch/fashion_mnist',
    'torch/imagenet', 'torch/inaturalist', 'torch/kmnist', 'torch/mnist', 'torch/places365', 'torch/qmnist',
)
# names of the same part in folders and datasets, the usual one first
SPLIT_NAMES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'eval', 'evaluation'),
    'test': ('test', 'testing'),
}
_ALL_NAMES = tuple(name for names in SPLIT_NAMES.values() for name in names)


def create_dataset(
        name: str = '',
        root: str | Path | None = None,
        split: str = 'train',
        *,
        class_names: Sequence[str] | None = None,
        **kwargs: Any,
) -> ImageSubset:
    """Create a map-style dataset of labelled images.

    Args:
        name: One of

            - '' or 'folder' or 'imagefolder': ``root`` is a folder of class folders, or holds one such folder for each
              part (``train``, ``val``, ``test``). A folder without parts is all training images;
            - 'list/FILE': a list of ``relative/path label`` lines over the image root ``root``; FILE is taken from the
              working folder, else from ``root``, and ``{split}`` in it is replaced;
            - 'timm_lt/digits': scikit-learn's digits;
            - any other name of ``timm.data.create_dataset`` with random access: 'torch/cifar10', 'hfds/NAME', ...
        root: Folder of the images, or where a dataset is stored.
        split: 'train', 'validation', 'test', or the dataset's own name of a part.
        class_names: Names in label order that the labels must follow: those of the training part, for every other part
            of a folder or a list. A folder of another class is an error.
        **kwargs: More arguments of ``timm.data.create_dataset``.

    Returns:
        All images of the part, with ``targets``, ``class_names`` and ``transform``.

    Raises:
        ValueError: If the name is unknown, the part does not exist, is empty, has a class folder without an image, or
            has classes that ``class_names`` lacks.
        FileNotFoundError: If the folder or list does not exist.
        TypeError: If the dataset streams.
    """
    if name == DIGITS:
        return ImageSubset(Digits(split, **kwargs))
    if name.startswith('list/'):
        return _create_list(name.removeprefix('list/'), root, split, class_names, **kwargs)
    if name.lower() in FOLDERS:
        return _create_folder(root, split, class_names, **kwargs)
    prefix = _prefix(name)
    if prefix in STREAMS:
        raise TypeError(
            f'dataset {name!r} streams its images; long-tailed sampling needs random access: '
            f"use 'hfds/...' instead of 'hfids/...', or a folder")
    try:
        dataset = timm.data.create_dataset(name, root=root, split=split, **kwargs)
    except AssertionError as e:  # timm's answer to an unknown torch/... name
        raise ValueError(f'timm cannot create dataset {name!r}: {e}. {nearest_names(name, EXAMPLES)}') from e
    if len(dataset) == 0:
        raise ValueError(f'dataset {name!r}, split {split!r}, has no images')
    if prefix == 'hfds':
        _check_columns(name, dataset.reader)
    return ImageSubset(dataset)


def numbers_its_own_classes(name: str) -> bool:
    """Whether each part numbers its classes anew unless it is told the names: folders and lists."""
    return name.lower() in FOLDERS or name.startswith('list/')


def _prefix(name: str) -> str:
    """The part of a timm name before '/'; timm takes the images of a folder for every name that it does not know."""
    prefix, slash, _ = name.partition('/')
    if not slash or prefix.lower() not in ('torch', 'hfds', *STREAMS):
        raise ValueError(f'unknown dataset {name!r}. {nearest_names(name, EXAMPLES)}')
    return prefix.lower()


def _check_columns(name: str, reader: Any) -> None:
    """Raise a ValueError if a Hugging Face dataset lacks the image or the label column."""
    columns = list(reader.dataset.column_names)
    first = reader.dataset.select_columns([reader.image_key])[0]
    if first[reader.image_key] is None:  # the reader's cast added a column that was not there
        columns.remove(reader.image_key)
    for key in (reader.image_key, reader.label_key):
        # timm also takes fields inside a column and several columns
        if key not in columns and '.' not in key and ',' not in key:
            raise ValueError(
                f'dataset {name!r} has no column {key!r}, only {columns}; name the image column by input_key '
                f'(--input-key) and the label column by target_key (--target-key)')


def find_split(name: str, root: str | Path | None, wanted: Sequence[str], **kwargs: Any) -> str | None:
    """The first part of ``wanted`` that a dataset has, under the dataset's own name; None if it has none.

    Args:
        name: As for :func:`create_dataset`.
        root: As for :func:`create_dataset`.
        wanted: Parts in order of preference, e.g. ``('test', 'validation')``.
        **kwargs: As for :func:`create_dataset`.
    """
    for part in wanted:
        for alias in _aliases(part):
            if _has_split(name, root, alias):
                return alias
    return None


def _has_split(name: str, root: str | Path | None, split: str) -> bool:
    if name == DIGITS:
        return split in ('train', 'test')
    if name.startswith('list/'):
        file = name.removeprefix('list/')
        return '{split}' in file and _list_path(file, root, split).is_file()
    if name.lower() in FOLDERS:
        return root is not None and (Path(root) / split).is_dir()
    if _prefix(name) == 'hfds':
        return split in _hfds_splits(name.split('/', 1)[1])
    # torchvision's sets have two parts, and timm gives the second one for every name but 'train'
    return split in ('train', 'validation')


def _hfds_splits(name: str) -> list[str]:
    from datasets import get_dataset_split_names
    return get_dataset_split_names(name)


def _aliases(split: str) -> tuple[str, ...]:
    return next((names for names in SPLIT_NAMES.values() if split in names), (split,))


def _list_path(file: str, root: str | Path | None, split: str) -> Path:
    path = Path(file.replace('{split}', split))
    if not path.is_file() and root is not None and (Path(root) / path).is_file():
        return Path(root) / path
    return path


def _create_list(
        file: str,
        root: str | Path | None,
        split: str,
        class_names: Sequence[str] | None,
        **kwargs: Any,
) -> ImageSubset:
    if root is None:
        raise ValueError(f'list file {file!r} needs the folder that its paths start from: root (--data-dir)')
    paths = [_list_path(file, root, alias) for alias in (split, *_aliases(split))]
    path = next((p for p in paths if p.is_file()), paths[0])
    return ImageSubset(ListFileDataset(path, root, class_names=class_names, **kwargs))


def _create_folder(
        root: str | Path | None,
        split: str,
        class_names: Sequence[str] | None,
        **kwargs: Any,
) -> ImageSubset:
    if root is None:
        raise ValueError('a folder dataset needs the folder: root (--data-dir)')
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f'there is no image folder {root}')
    folder = _split_folder(root, split)
    if class_names is not None:
        kwargs['class_map'] = {name: i for i, name in enumerate(class_names)}
        _check_class_folders(folder, class_names)
    try:
        dataset = timm.data.create_dataset('', root=str(folder), search_split=False, **kwargs)
    except RuntimeError as e:
        raise ValueError(
            f'{folder} has no images in class folders; expected {folder}/CLASS/IMAGE, e.g. {folder}/cat/1.jpg. '
            f'timm says: {e}') from e
    _check_no_loose_images(folder, dataset)
    if class_names is None:
        _check_no_empty_class(folder, get_class_names(dataset) or ())
    return ImageSubset(dataset)


def _split_folder(root: Path, split: str) -> Path:
    # timm takes the whole folder where the part is missing, which would test on training images
    for alias in (split, *_aliases(split)):
        if (root / alias).is_dir():
            return root / alias
    parts = [name for name in _ALL_NAMES if (root / name).is_dir()]
    if parts:
        raise ValueError(f'{root} has no part {split!r}, only {parts}')
    if split not in SPLIT_NAMES['train']:
        raise ValueError(
            f'{root} has no part {split!r}: make a folder {root / split}, or split the images with '
            f'timm_lt.data.split_validation')
    return root


def _check_no_loose_images(folder: Path, dataset: Any) -> None:
    names = get_class_names(dataset)
    if names and '' in names:
        raise ValueError(f'{folder} has images outside a class folder; move them into one, e.g. {folder}/cat/1.jpg')


def _check_no_empty_class(folder: Path, class_names: Sequence[str]) -> None:
    """timm leaves out a class whose folder has no image; say so instead."""
    types = get_img_extensions(as_set=True)

    def has_image(path: Path) -> bool:
        return any(os.path.splitext(f)[1].lower() in types for _, _, fs in os.walk(path, followlinks=True) for f in fs)

    empty = [
        p.name for p in folder.iterdir()
        if p.is_dir() and p.name not in class_names and not p.name.startswith(('.', '_')) and not has_image(p)]
    if empty:
        raise ValueError(
            f'{folder} has class folder(s) without an image: {sorted(empty)[:10]} (files of type '
            f'{", ".join(sorted(types))} count); add training images or remove the folder(s)')


def _check_class_folders(folder: Path, class_names: Sequence[str]) -> None:
    """timm leaves out images of classes that the map lacks; say so instead."""
    types = get_img_extensions(as_set=True)
    unknown = set()
    for path, _, files in os.walk(folder, followlinks=True):
        if os.path.basename(path) not in class_names and any(os.path.splitext(f)[1].lower() in types for f in files):
            unknown.add(os.path.relpath(path, folder))
    if unknown:
        raise ValueError(
            f'{folder} has class folder(s) {sorted(unknown)[:5]} that the training part lacks; '
            f'remove them or add training images')

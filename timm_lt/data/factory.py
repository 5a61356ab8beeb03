"""Datasets by name, over the registry of readers."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

from .._registry import READERS, call_factory
from .._validate import nearest_names
from .found import Found
from .parts import match_split
from .readers import DatasetReader
from .subset import ImageSubset

__all__ = ['create_dataset', 'create_reader', 'find_split', 'numbers_its_own_classes']

FOLDER_NAMES = ('', 'image_folder', 'imagefolder', 'torch/folder', 'torch/image_folder')  # further names of 'folder'


def create_dataset(
        name: str = '',
        root: str | Path | None = None,
        split: str = 'train',
        *,
        class_names: Sequence[str] | None = None,
        bad_images: str = 'error',
        **kwargs: Any,
) -> ImageSubset:
    """Create a map-style dataset of labelled images; log the images found and left out.

    Args:
        name: One of

            - '' or 'folder' or 'imagefolder': ``root`` is a folder of class folders, or holds one such folder for each
              part. Parts have usual names (``train``, ``val``, ``test`` ...) in any case. A folder without parts is all
              training images;
            - 'list/FILE': a list of ``relative/path label`` lines or a CSV, TSV or Parquet table. Paths start from
              ``root``. FILE is taken from the working folder, else from ``root``, and ``{split}`` in it is replaced;
            - 'timm_lt/digits': scikit-learn's digits;
            - 'hfds/NAME': Hugging Face datasets; 'torch/cifar10' and its like: torchvision's, by timm's names.
        root: Folder of the images, or where a dataset is stored.
        split: 'train', 'validation', 'test', or the dataset's own name of a part.
        class_names: Names in label order that the labels must follow. Pass the names of the training part for every
            other part. A class that they lack is an error. Sets whose data fix the labels do not need them.
        bad_images: 'error': entries without a class or a label are errors. 'skip': they are left out, with a warning.
        **kwargs: Options of the reader, e.g. ``class_map``, ``input_key``, ``target_key``.

    Returns:
        All images of the part, with ``targets``, ``class_names``, ``transform`` and ``found``.

    Raises:
        ValueError: If the name is unknown, or the part does not exist or is empty. Also if a class folder has no image,
            or ``class_names`` lacks a class.
        FileNotFoundError: If the folder or list does not exist.
        TypeError: If the dataset streams, or the reader lacks an option.
    """
    dataset = create_reader(name, root, bad_images=bad_images, **kwargs).read(split, class_names)
    found = getattr(dataset, 'found', None) or Found(name, split)
    subset = ImageSubset(dataset)
    found.count(subset.targets, subset.class_names)
    found.log()
    subset.found = found
    return subset


def create_reader(name: str = '', root: str | Path | None = None, **options: Any) -> DatasetReader:
    """The reader of a dataset, see :func:`create_dataset`.

    Raises:
        ValueError: If no reader knows the name.
        TypeError: If the dataset streams, or the reader lacks an option.
    """
    prefix, rest = _reader_name(name)
    kind = _kind(prefix)
    if kind.passes_options:
        return kind(rest, root, **options)
    return call_factory(READERS.info(prefix), 'dataset', rest, root, **options)


def find_split(name: str, root: str | Path | None, wanted: Sequence[str], **kwargs: Any) -> str | None:
    """The first part of ``wanted`` that a dataset has, under the dataset's own name; None if it has none.

    Args:
        name: As for :func:`create_dataset`.
        root: As for :func:`create_dataset`.
        wanted: Parts in order of preference, e.g. ``('test', 'validation')``.
        **kwargs: As for :func:`create_dataset`.
    """
    splits = create_reader(name, root, **kwargs).splits()
    return next((own for part in wanted if (own := match_split(part, splits)) is not None), None)


def numbers_its_own_classes(name: str) -> bool:
    """Whether each part numbers its classes by itself unless it is told the names: folders and lists."""
    return _kind(_reader_name(name)[0]).numbers_classes


def _kind(prefix: str) -> type[DatasetReader]:
    """The reader class that is registered under a prefix."""
    return cast(type[DatasetReader], READERS.info(prefix).factory)


def _reader_name(name: str) -> tuple[str, str]:
    """The registered reader of a dataset name, and the rest of the name."""
    if name.lower() in FOLDER_NAMES:
        return 'folder', ''
    prefix, _, rest = name.partition('/')
    if prefix.lower() not in READERS or (not rest and prefix.lower() != 'folder'):
        examples = [example for known in READERS.names() for example in _kind(known).examples]
        raise ValueError(f'unknown dataset {name!r}. {nearest_names(name, examples)}')
    return prefix.lower(), rest

"""Images to predict, in order, from a file, a folder, a list or table of paths, or a dataset."""

import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from PIL import Image

from .._registry import READERS
from ..data import ImageReadError, create_dataset
from ..data.factory import create_reader
from ..data.found import Found
from ..data.pixels import convert_image
from ..data.readers._scan import image_types, images_in_order
from ..data.readers.hfds import HubReader
from ..data.reading import image_name, read_image, read_sample
from ..data.rows import TABLES, read_paths

__all__ = ['ImageSource', 'open_source']

LISTS = (*TABLES, '.txt')


class ImageSource(ABC):
    """Images in a fixed order, each known by a name and read by a key.

    Attributes:
        identity: Values that tell this source from another one, for a run that goes on.
    """

    identity: dict[str, Any]

    @abstractmethod
    def entries(self) -> Iterator[tuple[str, Any]]:
        """Name and key of each image, in order."""

    @abstractmethod
    def read(self, key: Any, mode: str) -> Image.Image:
        """The image of a key, upright, in a mode of Pillow.

        Raises:
            ImageReadError: If it cannot be read.
        """

    def count(self) -> int:
        """Number of images."""
        return sum(1 for _ in self.entries())

    def left_out(self) -> list[str]:
        """A line for each kind of file that the last pass left out."""
        return []


class ImageFiles(ImageSource):
    """Image files below a folder.

    Args:
        root: The folder that names start from.
        names: Called for the names, relative to ``root`` or absolute.
        identity: See :class:`ImageSource`.
    """

    def __init__(self, root: Path, names: Callable[[], Iterable[str]], identity: dict[str, Any]) -> None:
        self.root, self.names, self.identity = root, names, identity

    def entries(self) -> Iterator[tuple[str, Any]]:
        return ((name, name) for name in self.names())

    def read(self, key: Any, mode: str) -> Image.Image:
        if not key:
            raise ImageReadError('the list names no image here')
        return read_image(os.path.join(self.root, key), mode)


class FolderImages(ImageFiles):
    """The images of a folder, at any depth, see :func:`images_in_order`."""

    def __init__(self, root: Path, input_key: str | None, identity: dict[str, Any]) -> None:
        super().__init__(root, self._names, identity)
        self.types = image_types(input_key)
        self.found = Found(str(root))

    def _names(self) -> Iterator[str]:
        self.found = Found(str(self.root))
        return images_in_order(self.root, self.types, self.found)

    def left_out(self) -> list[str]:
        return self.found.lines_left_out()


class DatasetImages(ImageSource):
    """Images of a map-style dataset; labels are not used."""

    def __init__(self, dataset: Any, identity: dict[str, Any]) -> None:
        self.dataset, self.identity = dataset, identity

    def entries(self) -> Iterator[tuple[str, Any]]:
        return ((image_name(self.dataset, i), i) for i in range(len(self.dataset)))

    def read(self, key: Any, mode: str) -> Image.Image:
        return convert_image(read_sample(self.dataset, key)[0], mode)

    def count(self) -> int:
        return len(self.dataset)


def open_source(
        source: str | Path,
        *,
        data_dir: str | Path | None = None,
        split: str = 'test',
        input_key: str | None = None,
) -> ImageSource:
    """The images that a name means.

    Args:
        source: An image file, or a folder, whose images are taken at any depth, in natural order. Also a list
            (``.txt``, a path or ``path label`` a line) or table (``.csv``, ``.tsv``, ``.parquet``) of paths. Also a
            dataset such as ``'hfds/NAME'``.
        data_dir: Folder that the paths of a list start from, by default that of the list; root of a dataset.
        split: Part of a dataset.
        input_key: Column of the images in a table or dataset; file types of a folder, e.g. ``'png;jpg'``.

    Raises:
        FileNotFoundError: If there is no such file, folder or dataset.
        ValueError: If a table has no clear column of paths.
    """
    path = Path(source)
    identity = {'source': str(source), 'data_dir': data_dir and str(data_dir), 'input_key': input_key}
    if path.is_dir():
        return FolderImages(path, input_key, identity)
    if path.is_file() and path.suffix.lower() in LISTS:
        root = Path(data_dir) if data_dir is not None else path.parent
        next(read_paths(path, input_key), None)  # a table without a column of paths is refused here
        return ImageFiles(root, lambda: (name or '' for name in read_paths(path, input_key)), identity)
    if path.is_file():
        return ImageFiles(Path(), lambda: [str(source)], identity)
    prefix = str(source).partition('/')[0].lower()
    if prefix not in READERS:
        raise FileNotFoundError(
            f'there is no file, folder or dataset {str(source)!r}; a dataset is named {", ".join(READERS.names())} '
            f'and /NAME')
    return _open_dataset(str(source), data_dir, split, input_key, {**identity, 'split': split})


def _open_dataset(
        name: str, data_dir: str | Path | None, split: str, input_key: str | None, identity: dict[str, Any],
) -> DatasetImages:
    options = {'input_key': input_key} if input_key else {}
    reader = create_reader(name, data_dir, **options)
    if isinstance(reader, HubReader):
        return DatasetImages(reader.read_images(split), identity)
    return DatasetImages(create_dataset(name, data_dir, split, **options), identity)

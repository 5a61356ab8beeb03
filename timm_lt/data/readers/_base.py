"""Interface of a dataset reader."""

import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._validate import check_option
from ..classes import ClassMap, read_class_map
from ..parts import usual_part
from ..unreadable import BAD_IMAGES


class DatasetReader(ABC):
    """One dataset, known by its name, from which parts are read.

    A subclass names its options as keyword arguments of ``__init__``; others are refused with that list.

    Args:
        name: Name after the reader's prefix, e.g. 'cifar10' of 'torch/cifar10'; may be empty.
        root: Folder of the images, or of the stored dataset; or None.
        bad_images: 'error': unusable entries are an error. 'skip': they are left out and counted.

    Attributes:
        examples: Dataset names of this kind, for messages.
        numbers_classes: Each part numbers its classes by itself, unless it is told the names.
        stored: The images lie in ``root``.
        passes_options: Options that ``__init__`` does not name go to timm.
    """

    examples: tuple[str, ...] = ()
    numbers_classes = False
    stored = False
    passes_options = False

    def __init__(self, name: str, root: str | Path | None = None, *, bad_images: str = 'error') -> None:
        self.name = name
        self.root = None if root is None else Path(root)
        self.skip = check_option('bad_images', bad_images, BAD_IMAGES) == 'skip'

    @abstractmethod
    def splits(self) -> list[str]:
        """Names of the parts that the dataset has."""

    @abstractmethod
    def read(self, split: str, class_names: Sequence[str] | None = None) -> Any:
        """Read a part.

        Args:
            split: Name of the part, or another usual name of it.
            class_names: Names in label order that the labels follow, from the training part. A reader whose data fix
                the labels does not need them.

        Returns:
            Map-style dataset of (image, label) that :func:`get_targets` and :func:`get_class_names` know, with an
            attribute ``transform``. An attribute ``found`` (:class:`Found`) says what was left out.

        Raises:
            ValueError: If the part does not exist, is empty or does not fit ``class_names``.
        """

    def shares_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        """Whether two parts, each a name and a dataset, have an image in common; by default, whether they are one."""
        names = [usual_part(split) or split for split, _ in (one, two)]
        return names[0] == names[1]


class NamedClassReader(DatasetReader):
    """A reader of data whose labels may be names, which a class map may number.

    Args:
        name: See :class:`DatasetReader`.
        root: See :class:`DatasetReader`.
        bad_images: See :class:`DatasetReader`.
        class_map: Label of each name, see :func:`read_class_map`; None: natural order of the names.
        input_img_mode: Mode of the images, see :func:`open_image`.
    """

    def __init__(
            self,
            name: str,
            root: str | Path | None = None,
            *,
            bad_images: str = 'error',
            class_map: ClassMap | None = None,
            input_img_mode: str | None = 'RGB',
    ) -> None:
        super().__init__(name, root, bad_images=bad_images)
        self.class_map = read_class_map(class_map, root) if class_map else None
        self.input_img_mode = input_img_mode


def share_files(one: Any, two: Any) -> bool:
    """Whether two datasets that know their files have one in common, also under two names."""
    files = [{os.path.realpath(data.filename(i, absolute=True)) for i in range(len(data))} for data in (one, two)]
    return not files[0].isdisjoint(files[1])

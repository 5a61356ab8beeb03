"""'hfds/NAME': sets of Hugging Face datasets with random access."""

import io
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import timm.data
from torch.utils.data import Dataset

from ..._registry import register_reader
from ..classes import ClassMap, number_classes
from ..found import NO_LABEL, NOT_IN_MAP, Found
from ..names import printable
from ..parts import match_split
from ..reading import ImageReadError, read_image
from ._base import NamedClassReader


class HubImages(Dataset):
    """Rows of a Hugging Face dataset with an image and a label.

    Args:
        reader: timm's reader of the dataset.
        rows: Rows that are used, N of them.
        targets: Their labels.
        class_names: Names in label order, or None.
        transform: Transform of the images.
        input_img_mode: Mode of the images.

    Attributes:
        found: What was found and left out, or None.
    """

    found: Found | None = None

    def __init__(
            self,
            reader: Any,
            rows: Sequence[int],
            targets: Sequence[int],
            class_names: Sequence[str] | None,
            transform: Callable | None = None,
            input_img_mode: str | None = 'RGB',
    ) -> None:
        self.reader = reader
        self.rows = rows
        self.targets = list(targets)
        self.class_names = None if class_names is None else list(class_names)
        self.transform = transform
        self.input_img_mode = input_img_mode

    def __len__(self) -> int:
        return len(self.rows)

    def _cell(self, index: int) -> dict[str, Any]:
        return self.reader.dataset[self.rows[index]][self.reader.image_key] or {}

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """File name of an image where the dataset keeps it, else the number of its row."""
        return self._cell(index).get('path') or f'row {self.rows[index]}'

    def __getitem__(self, index: int) -> tuple[Any, int]:
        cell, row = self._cell(index), self.rows[index]
        file = io.BytesIO(cell['bytes']) if cell.get('bytes') else cell.get('path')
        if file is None:
            raise ImageReadError(f'cannot read row {row}: its cell of column {self.reader.image_key!r} is empty')
        name = f'row {row}' + (f' ({printable(cell["path"])})' if cell.get('path') else '')
        image = read_image(file, self.input_img_mode, name)
        if self.transform is not None:
            image = self.transform(image)
        return image, self.targets[index]


@register_reader('hfds')
class HubReader(NamedClassReader):
    """A set of Hugging Face datasets: of the Hub, or a local folder of its files.

    The class names of a ``ClassLabel`` column fix the labels. Text and truth values are names: they are numbered in
    natural order, or follow the names of the training part.

    Args:
        name: Name on the Hub, or folder.
        root: Folder of the cache, or None.
        bad_images: 'error': rows without a label are an error. 'skip': they are left out.
        class_map: Label of each name, see :func:`read_class_map`.
        input_key: Column of the images.
        target_key: Column of the labels.
        input_img_mode: Mode of the images.
        **options: More arguments of ``timm.data.create_dataset``.
    """

    examples = ('hfds/NAME',)
    passes_options = True

    def __init__(
            self,
            name: str,
            root: str | Path | None = None,
            *,
            bad_images: str = 'error',
            class_map: ClassMap | None = None,
            input_key: str = 'image',
            target_key: str = 'label',
            input_img_mode: str | None = 'RGB',
            **options: Any,
    ) -> None:
        super().__init__(
            name, root, bad_images=bad_images, class_map=class_map, input_img_mode=input_img_mode)
        self.options = {**options, 'input_key': input_key, 'target_key': target_key}

    def splits(self) -> list[str]:
        from datasets import get_dataset_split_names  # seconds to import, and only this reader needs it
        return get_dataset_split_names(self.name)

    def read(self, split: str, class_names: Sequence[str] | None = None) -> HubImages:
        reader = self._open(split)
        if len(reader) == 0:
            raise ValueError(f'dataset {f"hfds/{self.name}"!r}, split {split!r}, has no images')
        self._check_columns(reader)
        found = Found(f'hfds/{self.name}', reader.split)
        labels = _labels(reader)
        unlabelled = [i for i, label in enumerate(labels) if label is None]
        rows = self._without(NO_LABEL, found, unlabelled, range(len(labels)))
        order, index = self._number(reader, [labels[i] for i in rows], class_names)
        if index is not None:
            unknown = [i for i in rows if printable(str(labels[i])) not in index]
            if unknown and self.class_map is None:
                raise ValueError(
                    f'dataset {f"hfds/{self.name}"!r}, split {split!r}, has classes '
                    f'{sorted({str(labels[i]) for i in unknown})[:5]} that the training part lacks')
            rows = self._without(NOT_IN_MAP, found, unknown, rows)
        targets = [labels[i] if index is None else index[printable(str(labels[i]))] for i in rows]
        dataset = HubImages(reader, rows, targets, order, input_img_mode=self.input_img_mode)
        dataset.found = found
        return dataset

    def read_images(self, split: str) -> HubImages:
        """All rows of a part, without labels: each target is -1."""
        reader = self._open(split)
        if self._lacks(reader, reader.image_key):
            raise self._no_column(reader, reader.image_key)
        rows = range(len(reader))
        return HubImages(reader, rows, [-1] * len(rows), None, input_img_mode=self.input_img_mode)

    def _open(self, split: str) -> Any:
        root = None if self.root is None else str(self.root)
        try:
            return timm.data.create_dataset(f'hfds/{self.name}', root=root, split=split, **self.options).reader
        except ValueError:
            own = match_split(split, self.splits())
            if own in (None, split):
                raise
        return timm.data.create_dataset(f'hfds/{self.name}', root=root, split=own, **self.options).reader

    def _check_columns(self, reader: Any) -> None:
        """Raise a ValueError if the image or the label column is missing."""
        for key in (reader.image_key, reader.label_key):
            if self._lacks(reader, key):
                raise self._no_column(reader, key)

    @staticmethod
    def _columns(reader: Any) -> list[str]:
        columns = list(reader.dataset.column_names)
        table = reader.dataset.data
        if table.column(reader.image_key).null_count == table.num_rows:
            columns.remove(reader.image_key)  # no cell has an image: the reader's cast added the column
        return columns

    def _lacks(self, reader: Any, key: str) -> bool:
        # timm also takes fields inside a column and several columns
        return key not in self._columns(reader) and not any(mark in key for mark in './,')

    def _no_column(self, reader: Any, key: str) -> ValueError:
        return ValueError(
            f'dataset {f"hfds/{self.name}"!r} has no column {key!r}, only {self._columns(reader)}; name the image '
            f'column by input_key (--input-key) and the label column by target_key (--target-key)')

    def _number(
            self, reader: Any, labels: Sequence[Any],
            class_names: Sequence[str] | None) -> tuple[list[str] | None, dict[str, int] | None]:
        """Class names, and the label of each name where labels are names."""
        if reader.class_to_idx and self.class_map is None:
            fixed = sorted(reader.class_to_idx, key=reader.class_to_idx.get)
            return fixed, reader.class_to_idx
        if self.class_map is None and not any(isinstance(label, str | bool) for label in labels):
            return None, None
        return number_classes((printable(str(label)) for label in labels), class_names, self.class_map)

    def _without(self, reason: str, found: Found, bad: Sequence[int], rows: Sequence[int]) -> Sequence[int]:
        if not bad:
            return rows
        if not self.skip:
            raise ValueError(
                f'dataset {f"hfds/{self.name}"!r}: {len(bad)} of {len(rows)} are {reason}, e.g. row {bad[0]}; repair '
                f"them, or leave them out with bad_images='skip' (--bad-images skip)")
        for row in bad:
            found.leave_out(reason, f'row {row}')
        out = set(bad)
        return [row for row in rows if row not in out]


def _labels(reader: Any) -> list[Any]:
    """Label of every row: a name where the column has names, a number otherwise, None where there is none."""
    key = reader.label_key
    if not reader.target_keys and key in reader.dataset.column_names:
        # the whole column at once: iter_targets goes row by row
        labels = reader.dataset.select_columns([key]).with_format(None)[:][key]
    else:
        labels = list(reader.iter_targets())
    if reader.class_to_idx:
        # -1 is the label of rows whose label is withheld
        names = {index: name for name, index in reader.class_to_idx.items()}
        return [names.get(label) for label in labels]
    return [None if isinstance(label, str) and not label.strip() else label for label in labels]

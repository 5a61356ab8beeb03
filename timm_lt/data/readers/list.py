"""'list/FILE': text lists and CSV, TSV and Parquet tables."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._registry import register_reader
from ..list_file import ListFileDataset
from ..parts import PART_NAMES, match_split
from ..rows import TABLES, read_rows
from ._base import NamedClassReader, share_files

SPLIT = '{split}'


@register_reader('list')
class ListReader(NamedClassReader):
    """Images named in a file, see :class:`ListFileDataset`.

    Args:
        name: The file, taken from the working folder, else from ``root``. ``{split}`` in it becomes the part. A table
            with a column ``split`` holds several parts. A list without either is one part under any name.
        root: Folder that the paths start from.
        input_key: Column of the paths.
        target_key: Column of the labels.
        **shared: ``bad_images``, ``class_map`` and ``input_img_mode``, see :class:`NamedClassReader`.
    """

    examples = ('list/FILE',)
    numbers_classes = True
    stored = True

    def __init__(
            self,
            name: str,
            root: str | Path | None = None,
            *,
            input_key: str | None = None,
            target_key: str | None = None,
            **shared: Any,
    ) -> None:
        super().__init__(name, root, **shared)
        self.columns: dict[str, Any] = {'input_key': input_key, 'target_key': target_key}

    def splits(self) -> list[str]:
        if SPLIT in self.name:
            usual = [form for names in PART_NAMES.values() for n in names for form in (n, n.capitalize(), n.upper())]
            return [name for name in usual if self._path(name).is_file()]
        path = self._path('')
        if path.suffix.lower() not in TABLES or not path.is_file():
            return []
        return sorted(set(read_rows(path, **self.columns).splits or ()))

    def read(self, split: str, class_names: Sequence[str] | None = None) -> ListFileDataset:
        if self.root is None:
            raise ValueError(f'list file {self.name!r} needs the folder that its paths start from: root (--data-dir)')
        path = self._path(split)
        if SPLIT in self.name and not path.is_file():
            path = self._path(match_split(split, self.splits()) or split)
        part = None if SPLIT in self.name else split
        dataset = ListFileDataset(
            path, self.root, class_names=class_names, split=part, class_map=self.class_map,
            bad_images='skip' if self.skip else 'error', input_img_mode=self.input_img_mode, **self.columns)
        dataset.found.part = split
        return dataset

    def shares_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        return share_files(one[1], two[1])

    def _path(self, split: str) -> Path:
        path = Path(self.name.replace(SPLIT, split))
        if not path.is_file() and self.root is not None and (self.root / path).is_file():
            return self.root / path
        return path

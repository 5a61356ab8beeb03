"""Image lists of ``relative/path label`` lines, as ImageNet-LT, Places-LT and iNaturalist 2018 come."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from PIL import Image
from torch.utils.data import Dataset

__all__ = ['ListFileDataset']


class ListFileDataset(Dataset):
    """Images named in a text file, one ``relative/path label`` a line.

    Args:
        list_file: The text file, UTF-8. The label is the last word of a line, so that paths may hold spaces; empty
            lines are passed over.
        image_root: Folder that the paths start from.
        transform: Transform of the images.
        class_names: Names in label order, or None.

    Attributes:
        targets: Labels, a list of N.

    Raises:
        ValueError: If a line is not a path and a label >= 0 (the line number is named), or there is no line.
        FileNotFoundError: If the list or the image root does not exist.
    """

    def __init__(
            self,
            list_file: str | Path,
            image_root: str | Path,
            transform: Callable | None = None,
            class_names: Sequence[str] | None = None,
    ) -> None:
        self.list_file = Path(list_file)
        self.image_root = Path(image_root)
        self.transform = transform
        if not self.list_file.is_file():
            raise FileNotFoundError(f'there is no list file {self.list_file}')
        if not self.image_root.is_dir():
            raise FileNotFoundError(f'there is no image folder {self.image_root} for the list {self.list_file}')
        self.paths: list[str] = []
        self.targets: list[int] = []
        with open(self.list_file, encoding='utf-8-sig') as f:
            for number, line in enumerate(f, start=1):
                if line.strip():
                    path, label = self._parse(line, number)
                    self.paths.append(path)
                    self.targets.append(label)
        if not self.paths:
            raise ValueError(f'{self.list_file} names no image')
        self.class_names = None if class_names is None else list(class_names)
        if self.class_names is not None and max(self.targets) >= len(self.class_names):
            raise ValueError(
                f'{self.list_file} has labels up to {max(self.targets)}, but there are {len(self.class_names)} classes')

    def _parse(self, line: str, number: int) -> tuple[str, int]:
        words = line.strip().rsplit(None, 1)
        where = f'{self.list_file}, line {number}'
        if len(words) < 2:
            raise ValueError(f'{where}: expected `relative/path label`, got {line.strip()!r}')
        path, label = words
        if not label.isdecimal():
            raise ValueError(f'{where}: the label must be a whole number >= 0, got {label!r}')
        return path, int(label)

    def __len__(self) -> int:
        return len(self.paths)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        path = self.paths[index]
        return os.path.basename(path) if basename else str(self.image_root / path) if absolute else path

    def __getitem__(self, index: int) -> tuple[Any, int]:
        with open(self.image_root / self.paths[index], 'rb') as f:
            image = Image.open(f).convert('RGB')
        if self.transform is not None:
            image = self.transform(image)
        return image, self.targets[index]

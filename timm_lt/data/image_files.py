"""A dataset of image files and their labels."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from torch.utils.data import Dataset

from .found import Found
from .names import printable
from .reading import read_image

__all__ = ['ImageFiles']


class ImageFiles(Dataset):
    """Image files with labels.

    Args:
        root: Folder that the paths start from.
        paths: Paths relative to ``root``, or absolute, N of them.
        targets: Labels, N of them.
        class_names: Names in label order, or None.
        transform: Transform of the images.
        input_img_mode: Mode of the images, see :func:`open_image`.

    Attributes:
        found: What the reader found and left out, or None.
    """

    found: Found | None = None

    def __init__(
            self,
            root: str | Path,
            paths: Sequence[str],
            targets: Sequence[int],
            class_names: Sequence[str] | None = None,
            transform: Callable | None = None,
            input_img_mode: str | None = 'RGB',
    ) -> None:
        self.image_root = Path(root)
        self.paths = list(paths)
        self.targets = list(targets)
        self.class_names = None if class_names is None else list(class_names)
        self.transform = transform
        self.input_img_mode = input_img_mode

    def __len__(self) -> int:
        return len(self.paths)

    def filename(self, index: int, basename: bool = False, absolute: bool = False) -> str:
        """File name of an image: its last part, its whole path, or its path from the root."""
        path = self.paths[index]
        return os.path.basename(path) if basename else os.path.join(self.image_root, path) if absolute else path

    def __getitem__(self, index: int) -> tuple[Any, int]:
        path = os.path.join(self.image_root, self.paths[index])
        image = read_image(path, self.input_img_mode, printable(path))
        if self.transform is not None:
            image = self.transform(image)
        return image, self.targets[index]

"""Embedded images: scikit-learn's handwritten digits, for runs without any download."""

from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image
from torch.utils.data import Dataset

from .._validate import check_option
from .subset import split_indices

__all__ = ['Digits']

SPLITS = {'train': 0, 'test': 1, 'validation': 1, 'val': 1}
TEST_FRACTION = 0.2


class Digits(Dataset):
    """The 1,797 digits of ``sklearn.datasets.load_digits`` (8x8, 16 grey values) as 32x32 RGB images.

    Source: E. Alpaydin, C. Kaynak, "Optical Recognition of Handwritten Digits", UCI repository, 1998.

    Args:
        split: 'train' (1,438 images), or 'test', also named 'validation' (359): always the same stratified fifth.
        transform: Transform of the images.

    Attributes:
        targets: Labels, a list of N.
    """

    def __init__(self, split: str = 'train', transform: Callable | None = None) -> None:
        from sklearn.datasets import load_digits  # a second to import, and only this data set needs it
        check_option('split', split, tuple(SPLITS))
        digits = load_digits()
        indices = split_indices(digits.target, TEST_FRACTION, seed=0)[SPLITS[split]].numpy()
        grey = np.rint(digits.images[indices] * (255 / 16)).astype(np.uint8)
        self.images = [Image.fromarray(g).resize((32, 32), Image.Resampling.BICUBIC).convert('RGB') for g in grey]
        self.targets: list[int] = digits.target[indices].tolist()
        self.class_names = [str(i) for i in range(10)]
        self.transform = transform

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image = self.images[index]
        if self.transform is not None:
            image = self.transform(image)
        return image, self.targets[index]

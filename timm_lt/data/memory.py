"""Small image sets, decoded once and kept as one uint8 tensor."""

import logging
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from .._dataset_labels import get_class_names, get_targets
from .._labels import read_labels
from .._validate import check_option
from .found import is_main_process
from .reading import ImageReadError, image_name, read_sample
from .unreadable import BAD_IMAGES, report_unreadable, without_transform

__all__ = ['ImagesDoNotFit', 'InMemoryImages', 'keep_in_memory']

_logger = logging.getLogger(__name__)

MODES = ('auto', 'on', 'off')
MEMORY_LIMIT = 2 << 30  # bytes


class ImagesDoNotFit(ValueError):
    """Images differ in size or are more than the memory limit."""


class InMemoryImages(Dataset):
    """Images of one size in one uint8 tensor; also a map-style dataset of (PIL image, label).

    Args:
        images: (N, C, H, W), uint8, C = 1 or 3.
        targets: Labels, (N,).
        class_names: Names in label order, or None.
        transform: Transform of the images where they are read one by one.
    """

    def __init__(
            self,
            images: Tensor,
            targets: Any,
            class_names: list[str] | None = None,
            transform: Callable | None = None,
    ) -> None:
        if images.ndim != 4 or images.dtype != torch.uint8 or images.shape[1] not in (1, 3):
            raise ValueError(
                f'images must be (N, 1 or 3, H, W) and uint8, got {tuple(images.shape)}, {images.dtype}')
        self.images = images
        self.targets = read_labels(targets)
        if self.targets.shape != images.shape[:1]:
            raise ValueError(f'{len(images)} images need as many targets, got shape {tuple(self.targets.shape)}')
        self.class_names = class_names
        self.transform = transform

    @classmethod
    def from_dataset(
            cls,
            dataset: Any,
            transform: Callable | None = None,
            *,
            bad_images: str = 'error',
            max_bytes: int = MEMORY_LIMIT,
    ) -> 'InMemoryImages':
        """Decode every image of a dataset; its own transform is not applied.

        Args:
            dataset: Map-style dataset of (PIL image, label).
            transform: A deterministic transform that is applied once, e.g. resizing. It maps a PIL image to a PIL image
                or a uint8 tensor.
            bad_images: 'error': an unreadable image is an error, which counts and names them. 'skip': they are left
                out, with a warning.
            max_bytes: Memory limit.

        Raises:
            ImagesDoNotFit: If images differ in size, or exceed ``max_bytes``; found at the first such image.
            ImageReadError: If images cannot be read.
        """
        check_option('bad_images', bad_images, BAD_IMAGES)
        source = without_transform(dataset)
        targets = get_targets(source)
        images: Tensor | None = None
        bad: dict[int, str] = {}
        kept: list[int] = []
        for index in range(len(source)):
            try:
                image, _ = read_sample(source, index)
            except ImageReadError as e:
                bad[index] = str(e)
                continue
            pixels = _as_pixels(image if transform is None else transform(image))
            if images is None:
                images = _allocate(len(source), pixels, max_bytes)
            if pixels.shape != images.shape[1:]:
                raise ImagesDoNotFit(
                    f'{image_name(source, index)} has {_size(pixels)} pixels, the images before it {_size(images[0])}')
            images[len(kept)] = pixels
            kept.append(index)
        report_unreadable(bad, len(source), bad_images)
        if images is None:
            raise ValueError('the dataset has no images')
        return cls(images[:len(kept)], targets[kept], get_class_names(source))

    @property
    def image_size(self) -> tuple[int, int, int]:
        """Channels, height, width."""
        channels, height, width = self.images.shape[1:]
        return channels, height, width

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        pixels = self.images[index].permute(1, 2, 0).numpy()
        image = Image.fromarray(pixels if pixels.shape[-1] == 3 else pixels[..., 0])
        if self.transform is not None:
            image = self.transform(image)
        return image, int(self.targets[index])


def keep_in_memory(
        dataset: Any,
        mode: str = 'auto',
        transform: Callable | None = None,
        *,
        bad_images: str = 'error',
        max_bytes: int = MEMORY_LIMIT,
) -> InMemoryImages | None:
    """Decode a dataset into memory where it fits.

    Args:
        dataset: Map-style dataset of (PIL image, label).
        mode: 'auto': None where images differ in size or exceed ``max_bytes``. 'on': an error then. 'off': None.
        transform, bad_images, max_bytes: See :meth:`InMemoryImages.from_dataset`.
    """
    check_option('mode', mode, MODES)
    if mode == 'off':
        return None
    try:
        return InMemoryImages.from_dataset(dataset, transform, bad_images=bad_images, max_bytes=max_bytes)
    except ImagesDoNotFit as e:
        if mode == 'on':
            raise
        if is_main_process():
            _logger.info('images are read from their files, because %s', e)
        return None


def _as_pixels(image: Any) -> Tensor:
    """(C, H, W), uint8."""
    if isinstance(image, Tensor):
        if image.dtype != torch.uint8 or image.ndim != 3:
            raise ValueError(f'expected a uint8 image (C, H, W), got {tuple(image.shape)}, {image.dtype}')
        return image
    if image.mode not in ('RGB', 'L'):
        image = image.convert('RGB')
    pixels = np.array(image)
    return torch.from_numpy(pixels[None] if pixels.ndim == 2 else pixels.transpose(2, 0, 1))


def _allocate(count: int, pixels: Tensor, max_bytes: int) -> Tensor:
    needed = count * pixels.numel()
    if needed > max_bytes:
        raise ImagesDoNotFit(
            f'{count} images of {_size(pixels)} pixels take {needed / 2 ** 30:.2f} GiB, more than the limit of '
            f'{max_bytes / 2 ** 30:.2f} GiB')
    return torch.empty((count, *pixels.shape), dtype=torch.uint8, device='cpu')


def _size(pixels: Tensor) -> str:
    channels, height, width = pixels.shape
    return f'{width} x {height}' + (' grey' if channels == 1 else '')

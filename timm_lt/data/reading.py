"""Reading images without silent substitution: an unreadable image is named, never replaced by its neighbour."""

import bisect
import copy
from typing import Any

from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import ConcatDataset, Subset
from torchvision.datasets.folder import default_loader

from .names import printable
from .pixels import convert_image, open_image

__all__ = ['ImageReadError', 'read_image', 'read_sample']


class ImageReadError(OSError):
    """One or several images cannot be read; the message names them."""


def image_name(dataset: Any, index: int) -> str:
    """Path of an image where the dataset knows it, else its number."""
    if hasattr(dataset, 'filename'):
        try:
            name = dataset.filename(index, absolute=True)
        except (AssertionError, AttributeError, TypeError):
            name = None
        if name:
            return printable(str(name))
    samples = getattr(dataset, 'samples', None)
    return printable(str(samples[index][0])) if samples is not None else f'image {index} of {type(dataset).__name__}'


def read_image(file: Any, mode: str | None = 'RGB', name: str = '') -> Image.Image:
    """:func:`open_image`, any error an :class:`ImageReadError` that names the image.

    Args:
        file: Path, or binary file object.
        mode: As for :func:`open_image`.
        name: Name of the image for the message; empty takes ``file``.
    """
    try:
        return open_image(file, mode)
    except Exception as e:  # noqa: BLE001  Pillow and its plugins raise errors of every kind
        raise _error(name or printable(str(file)), e) from e


def read_sample(dataset: Any, index: int) -> tuple[Any, int]:
    """``dataset[index]`` as (image, label), the image upright and with 8 bits a channel, see :mod:`.pixels`.

    timm's ``ImageDataset`` replaces an unreadable image and its label by the next ones. torchvision's folders clip
    16-bit images. Both are read here without that.

    Raises:
        ImageReadError: If the image cannot be read, for whatever reason; names it. An error of the dataset's transform
            is raised unchanged.
    """
    getitem = type(dataset).__getitem__
    if getitem is Subset.__getitem__:
        return read_sample(dataset.dataset, dataset.indices[index])
    if getitem is ConcatDataset.__getitem__:
        which = bisect.bisect_right(dataset.cumulative_sizes, index)
        return read_sample(dataset.datasets[which], index - (dataset.cumulative_sizes[which - 1] if which else 0))
    if getitem is ImageDataset.__getitem__ and not dataset.load_bytes:
        return _read_timm(dataset, index)
    if getattr(dataset, 'loader', None) is default_loader:
        dataset = copy.copy(dataset)
        dataset.loader = open_image
    try:
        image, target, *_ = dataset[index]
        if isinstance(image, Image.Image):
            image.load()
            image = convert_image(image, None)
    except ImageReadError:
        raise
    except Exception as e:
        if not _image_is_at_fault(dataset, index):
            raise
        raise _error(image_name(dataset, index), e) from e
    return image, int(target)


def _image_is_at_fault(dataset: Any, index: int) -> bool:
    """Whether an index that failed also fails without the dataset's transform."""
    if not 0 <= index < len(dataset):
        return False
    if getattr(dataset, 'transform', None) is None:
        return True
    plain = copy.copy(dataset)
    plain.transform = None
    try:
        image, *_ = plain[index]
        if isinstance(image, Image.Image):
            image.load()
    except Exception:  # noqa: BLE001  as above
        return True
    return False


def _error(name: str, reason: Exception) -> ImageReadError:
    # the reasons of Pillow name an object in memory, not the file
    kind = '' if type(reason) in (OSError, FileNotFoundError, ValueError) else f'{type(reason).__name__}: '
    return ImageReadError(f'cannot read {name}: {kind}{printable(str(reason))}')


def _read_timm(dataset: ImageDataset, index: int) -> tuple[Any, int]:
    try:
        file, target, *_ = dataset.reader[index]
    except Exception as e:  # noqa: BLE001  e.g. an empty cell of a table
        raise _error(image_name(dataset, index), e) from e
    with file:
        image = read_image(file, dataset.input_img_mode or None, image_name(dataset, index))
    if dataset.transform is not None:
        image = dataset.transform(image)
    if target is not None and dataset.target_transform is not None:
        target = dataset.target_transform(target)
    return image, -1 if target is None else int(target)

"""Reading images without silent substitution: an unreadable image is named, never replaced by its neighbour."""

from typing import Any

from PIL import Image
from timm.data import ImageDataset

__all__ = ['ImageReadError', 'read_sample']


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
            return str(name)
    samples = getattr(dataset, 'samples', None)
    return str(samples[index][0]) if samples is not None else f'image {index} of {type(dataset).__name__}'


def read_sample(dataset: Any, index: int) -> tuple[Any, int]:
    """``dataset[index]`` as (image, label).

    timm's ``ImageDataset`` replaces an image that it cannot read by the next one, label included. Here it is an error.

    Raises:
        ImageReadError: If the image cannot be read; names it.
    """
    try:
        # what is read for an index must be what stands there: go around the substitution of timm's own __getitem__
        if type(dataset).__getitem__ is ImageDataset.__getitem__ and not dataset.load_bytes:
            return _read_timm(dataset, index)
        image, target, *_ = dataset[index]
    except ImageReadError:
        raise
    except (OSError, SyntaxError, Image.DecompressionBombError) as e:
        # the reasons of PIL name an object in memory, not the file
        raise ImageReadError(f'cannot read {image_name(dataset, index)}: {e}') from e
    return image, int(target)


def _read_timm(dataset: ImageDataset, index: int) -> tuple[Any, int]:
    file, target, *_ = dataset.reader[index]
    with file:
        image = Image.open(file)
        image = image.convert(dataset.input_img_mode) if dataset.input_img_mode else image
        image.load()
    if dataset.transform is not None:
        image = dataset.transform(image)
    if target is not None and dataset.target_transform is not None:
        target = dataset.target_transform(target)
    return image, -1 if target is None else int(target)

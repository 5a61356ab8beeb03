"""Reading images without silent substitution: an unreadable image is named, never replaced by its neighbour."""

import copy
import logging
from typing import Any

from PIL import Image
from timm.data import ImageDataset
from torch.utils.data import DataLoader, Dataset, Subset

from .._validate import check_option

__all__ = ['ImageReadError', 'drop_unreadable', 'find_unreadable', 'read_sample']

_logger = logging.getLogger(__name__)

BAD_IMAGES = ('error', 'skip')


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


def without_transform(dataset: Any) -> Any:
    """A shallow copy of a dataset that gives images as they are."""
    if isinstance(dataset, Subset):
        from .subset import ImageSubset
        dataset = ImageSubset(dataset)  # a copy down to the base, whose transform it is
    else:
        dataset = copy.copy(dataset)
    if getattr(dataset, 'transform', None) is not None:
        dataset.transform = None
    return dataset


class _Probe(Dataset):
    def __init__(self, dataset: Any) -> None:
        self.dataset = without_transform(dataset)

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, index: int) -> str:
        try:
            read_sample(self.dataset, index)
        except ImageReadError as e:
            return str(e)
        return ''


def find_unreadable(dataset: Any, workers: int = 0) -> dict[int, str]:
    """Decode every image once; index and reason of those that cannot be read."""
    loader = DataLoader(_Probe(dataset), batch_size=64, num_workers=workers, collate_fn=list)
    bad, index = {}, 0
    for reasons in loader:
        for reason in reasons:
            if reason:
                bad[index] = reason
            index += 1
    return bad


def report_unreadable(bad: dict[int, str], total: int, bad_images: str) -> None:
    """Raise (``'error'``) or warn (``'skip'``) with the number and the first names.

    Raises:
        ImageReadError: With ``bad_images='error'``, or if no image is left.
    """
    check_option('bad_images', bad_images, BAD_IMAGES)
    if not bad:
        return
    reasons = list(bad.values())
    more = '; ...' if len(reasons) > 5 else ''
    text = f'{len(bad)} of {total} images cannot be read: {"; ".join(reasons[:5])}{more}'
    if bad_images == 'error' or len(bad) == total:
        raise ImageReadError(f"{text}. Repair or remove them, or leave them out with bad_images='skip'")
    _logger.warning('%s. They are left out.', text)


def drop_unreadable(dataset: Any, bad_images: str = 'error', workers: int = 0) -> Any:
    """Check every image; stop, or go on without those that cannot be read.

    Args:
        dataset: Map-style dataset of (image, label).
        bad_images: 'error': any unreadable image is an error. 'skip': they are left out, with a warning.
        workers: Processes that decode.

    Returns:
        ``dataset`` itself, or an :class:`ImageSubset` of the readable images.

    Raises:
        ImageReadError: With the number of unreadable images and the names of the first.
    """
    check_option('bad_images', bad_images, BAD_IMAGES)
    bad = find_unreadable(dataset, workers)
    report_unreadable(bad, len(dataset), bad_images)
    if not bad:
        return dataset
    from .subset import ImageSubset
    return ImageSubset(dataset, [i for i in range(len(dataset)) if i not in bad])

"""Images that cannot be read: found before training, reported, left out on request."""

import copy
import logging
from typing import Any

import torch
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from .._validate import check_option
from .checked import CheckedFiles
from .found import is_main_process
from .reading import ImageReadError, image_name, read_sample
from .subset import ImageSubset

__all__ = ['drop_unreadable', 'find_unreadable']

_logger = logging.getLogger(__name__)

BAD_IMAGES = ('error', 'skip')


def without_transform(dataset: Any) -> Any:
    """A shallow copy of a dataset that gives images as they are."""
    if isinstance(dataset, Subset):
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


def find_unreadable(dataset: Any, workers: int = 0, what: str = 'images') -> dict[int, str]:
    """Decode every image once; index and reason of those that cannot be read.

    Files that were readable before, and have the same size and time of change, are not read again
    (:mod:`timm_lt.data.checked`). A terminal shows a progress bar.
    """
    files = CheckedFiles([image_name(dataset, i) for i in range(len(dataset))])
    indices = files.unknown()
    if not indices:
        return {}
    shown = is_main_process() and _logger.isEnabledFor(logging.INFO)
    if shown:
        _logger.info(
            'checking that %d %s can be read (files are remembered; --no-check-images leaves it out)', len(indices),
            what)
    loader = DataLoader(
        Subset(_Probe(dataset), indices), batch_size=64, num_workers=workers, collate_fn=list,
        generator=torch.Generator())  # the global generator belongs to the training
    bad: dict[int, str] = {}
    position = 0
    with tqdm(total=len(indices), desc='checking images', unit='', disable=None if shown else True, leave=False) as bar:
        for reasons in loader:
            for reason in reasons:
                if reason:
                    bad[indices[position]] = reason
                position += 1
            bar.update(len(reasons))
    files.remember(i for i in indices if i not in bad)
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
        raise ImageReadError(
            f"{text}. Repair or remove them, or leave them out with bad_images='skip' (--bad-images skip)")
    _logger.warning('%s. They are left out.', text)


def drop_unreadable(dataset: Any, bad_images: str = 'error', workers: int = 0, what: str = 'images') -> Any:
    """Check every image; stop, or go on without those that cannot be read.

    Args:
        dataset: Map-style dataset of (image, label).
        bad_images: 'error': any unreadable image is an error. 'skip': they are left out, with a warning.
        workers: Processes that decode.
        what: Name of the images for the log.

    Returns:
        ``dataset`` itself, or an :class:`ImageSubset` of the readable images.

    Raises:
        ImageReadError: With the number of unreadable images and the names of the first.
    """
    check_option('bad_images', bad_images, BAD_IMAGES)
    bad = find_unreadable(dataset, workers, what)
    report_unreadable(bad, len(dataset), bad_images)
    if not bad:
        return dataset
    return ImageSubset(dataset, [i for i in range(len(dataset)) if i not in bad])

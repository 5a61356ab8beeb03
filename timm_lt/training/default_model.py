"""The network of a run whose options name none."""

from statistics import median
from typing import Any

import torch

from ..data.reading import read_sample
from ..data.unreadable import without_transform
from .errors import ConfigError
from .options import ModelOptions

SMALL_IMAGES = 64  # pixels of the shorter side
FOR_SMALL_IMAGES = 'resnet20_cifar'
FOR_PHOTOS = 'resnet18'  # 11.7 M parameters: trains on a CPU, and timm has published weights of it
MEASURED_IMAGES = 16


def choose_model(options: ModelOptions, images: Any) -> tuple[str, str]:
    """A network by the size of its input, or else of the training images, and a sentence that says why.

    Args:
        options: Their input size goes before the size of the images.
        images: Training images.

    Returns:
        timm's name of the network, and the reason.

    Raises:
        ConfigError: If there is no image.
    """
    given = options.img_size or (options.input_size[1] if options.input_size else None)
    side, what = (given, 'the input has') if given else (shorter_side(images), 'images have about')
    name = FOR_SMALL_IMAGES if side <= SMALL_IMAGES else FOR_PHOTOS
    reason = f'no --model is given: {name}, because {what} {side} pixels a side'
    if name == FOR_PHOTOS and not options.pretrained:
        reason += '; --pretrained starts with its published weights'
    return name, reason


def shorter_side(images: Any) -> int:
    """Median of the shorter side, in pixels, over a few images spread over a dataset."""
    if len(images) == 0:
        raise ConfigError('the training part has no images')
    if size := getattr(images, 'image_size', None):
        return min(size[1:])
    images = without_transform(images)
    chosen = torch.linspace(0, len(images) - 1, min(MEASURED_IMAGES, len(images))).long().unique().tolist()
    return int(median(_side(read_sample(images, i)[0]) for i in chosen))


def _side(image: Any) -> int:
    return min(image.shape[-2:] if torch.is_tensor(image) else image.size)

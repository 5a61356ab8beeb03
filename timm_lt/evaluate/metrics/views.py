"""Logits averaged over several views of an image: its mirror image, its corners and centre."""

from collections.abc import Sequence

import torch.nn as nn
from torch import Tensor
from torchvision.transforms.functional import five_crop

VIEWS = {
    2: 'mean over the image and its mirror image',
    5: 'mean over crops of four corners and the centre',
    10: 'mean over crops of four corners and the centre, and their mirror images',
}


class ViewAverage(nn.Module):
    """Mean of a model's logits over views of each image.

    Args:
        model: Gives logits (B, C) of images (B, channels, H, W).
        views: Number of views, a key of ``VIEWS``.
        size: Height and width of the crops of 5 and 10 views; the images are at least as large.
    """

    def __init__(self, model: nn.Module, views: int, size: Sequence[int]) -> None:
        super().__init__()
        self.model = model
        self.views = views
        self.size = list(size)
        self.training = model.training

    def forward(self, images: Tensor) -> Tensor:
        views = [images] if self.views == 2 else list(five_crop(images, self.size))
        if self.views != 5:
            views += [view.flip(-1) for view in views]
        logits = self.model(views[0])
        for view in views[1:]:
            logits = logits + self.model(view)
        return logits / len(views)


def viewed_size(views: int, input_size: Sequence[int], crop_pct: float | None) -> tuple[int, ...]:
    """Channels, height and width of the images of which a network sees ``views``.

    Args:
        views: Number of views; 0 and 1: the image alone.
        input_size: Channels, height and width of the network's input.
        crop_pct: Share of an image that one central crop keeps, in (0, 1]; None: 1.

    Raises:
        ValueError: If the crops of five and more views would all be the whole image.
    """
    if views <= 2:
        return tuple(input_size)
    if crop_pct is None or crop_pct == 1:
        raise ValueError(
            f'{views} views are crops of a larger image, but evaluation keeps the whole image; give a share below 1, '
            f'e.g. --crop-pct 0.875')
    return input_size[0], *(int(side / crop_pct) for side in input_size[1:])

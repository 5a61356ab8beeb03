"""Training augmentation, split into a part for single images (PIL) and a part for whole batches.

Images in memory go through whole batches wherever each part of the augmentation has a form for them.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms

from .._validate import check_option, check_range, check_whole
from .augment import BatchAugment
from .augment.batch_form import batch_form
from .augment.colour import BLUR_KERNEL
from .augment.crop import PaddedCrop, ResizedCrop
from .augment.resample import FILTERS
from .pixels import convert_image

__all__ = ['Augmentation', 'MultiView', 'SplitViews', 'contrastive_views', 'eval_transform', 'three_views']

CROP_MODES = ('pad', 'none', 'rrc', 'rkrc', 'rkrr')
# policies of torchvision beside those of timm, which begin with 'rand', 'augmix', 'v0', 'original' or '3a'
TORCHVISION_POLICIES = {
    **{policy.value: partial(transforms.AutoAugment, policy) for policy in transforms.AutoAugmentPolicy},
    'trivial': transforms.TrivialAugmentWide,
}


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation by the names of timm's options.

    Attributes:
        input_size: Channels, height, width.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        interpolation: timm's name, for resizing.
        crop_mode: 'pad': ``padding`` black pixels around, then a random crop, the standard of CIFAR. Images of another
            size are resized first. 'none': resized only. 'rrc', 'rkrc', 'rkrr': timm's random resized crops.
        padding: Pixels of 'pad'.
        scale: Area of timm's crops; None is timm's default.
        ratio: Aspect ratio of timm's crops; None is timm's default.
        hflip: Probability of a horizontal flip.
        vflip: Probability of a vertical flip.
        color_jitter: Strength of timm's colour jitter, a number or one per component; None off. Off with
            ``auto_augment``, as in timm.
        color_jitter_prob: Probability of the jitter; None: always.
        grayscale_prob: Probability of grey.
        gaussian_blur_prob: Probability of timm's Gaussian blur (standard deviation 0.1 to 2 pixels); 0 off.
        auto_augment: timm's AutoAugment, RandAugment or AugMix string, or a policy of torchvision. torchvision's are
            'cifar10', 'imagenet', 'svhn' (AutoAugment, by the data it was found on) and 'trivial' (TrivialAugment).
        cutout: Side of the Cutout square in pixels; 0 off.
        cutout_fill: Colour of the square: 'mean' or 'black'.
        reprob: Probability of random erasing.
        repeat_reprob: The same for an image that the epoch has drawn before; None: ``reprob``.
        remode: 'const', 'rand' or 'pixel'.
    """

    input_size: tuple[int, int, int]
    mean: Sequence[float]
    std: Sequence[float]
    interpolation: str = 'bilinear'
    crop_mode: str = 'pad'
    padding: int = 4
    scale: Sequence[float] | None = None
    ratio: Sequence[float] | None = None
    hflip: float = 0.5
    vflip: float = 0.
    color_jitter: Any = None
    color_jitter_prob: float | None = None
    grayscale_prob: float = 0.
    gaussian_blur_prob: float = 0.
    auto_augment: str | None = None
    cutout: int = 0
    cutout_fill: str = 'mean'
    reprob: float = 0.
    repeat_reprob: float | None = None
    remode: str = 'const'

    def __post_init__(self) -> None:
        check_option('crop_mode', self.crop_mode, CROP_MODES)
        check_range('gaussian_blur_prob', self.gaussian_blur_prob, 0, 1)
        if self.gaussian_blur_prob and min(self.input_size[1:]) <= BLUR_KERNEL // 2:
            raise ValueError(
                f'gaussian_blur_prob blurs over {BLUR_KERNEL} pixels, so images need at least {BLUR_KERNEL // 2 + 1} '
                f'pixels a side, got {self.input_size}')

    @cached_property
    def batchwise(self) -> bool:
        """All of it can run on whole batches of images in memory."""
        return self._batch_crop() is not None and None not in self._batch_colors()

    def takes(self, image_size: tuple[int, int, int]) -> bool:
        """Whole batches of images of this size (channels, height, width) can be augmented."""
        resized = self.crop_mode == 'rrc' and image_size[0] == self.input_size[0]
        return self.batchwise and (resized or tuple(image_size) == tuple(self.input_size))

    def batch_augment(
            self,
            seed: int = 0,
            whole: bool = False,
            more_views: Sequence['Augmentation'] = (),
    ) -> BatchAugment:
        """The part for batches: Cutout, erasing and normalisation; with ``whole`` all of it.

        Args:
            seed: See :class:`BatchAugment`.
            whole: Also crop, flips, colour and automatic augmentation.
            more_views: Augmentation of each further view, with ``whole``.

        Raises:
            ValueError: If ``whole`` is asked for and a part works on single images only.
        """
        views = [view.batch_steps() for view in (self, *more_views)] if whole else [[]]
        return BatchAugment(
            self.mean, self.std, steps=views[0], more_views=views[1:], cutout=self.cutout,
            cutout_fill=self.cutout_fill, reprob=self.reprob, repeat_reprob=self.repeat_reprob, remode=self.remode,
            seed=seed)

    def batch_steps(self) -> list[Callable]:
        """Crop, flips and colour for whole uint8 batches."""
        if not self.batchwise:
            raise ValueError(
                'this augmentation works on single images only: whole batches need crop_mode pad, none or rrc, '
                'interpolation bilinear or bicubic, and operations that have a form for batches')
        return [step for step in (self._batch_crop(), *self._batch_colors()) if step is not None]

    def _batch_crop(self) -> Callable | None:
        flips = {'hflip': self.hflip, 'vflip': self.vflip}
        if self.crop_mode in ('pad', 'none'):
            return PaddedCrop(self.padding if self.crop_mode == 'pad' else 0, **flips)
        if self.crop_mode == 'rrc' and self.interpolation in FILTERS:
            crop = self._timm_transforms()[0].transforms[0]
            return ResizedCrop(crop.size, crop.scale, crop.ratio, self.interpolation, **flips)
        return None

    def _batch_colors(self) -> list[Callable | None]:
        return [batch_form(transform) for transform in self._color_transforms()]

    def _color_transforms(self) -> list[Callable[[Image.Image], Image.Image]]:
        """Automatic augmentation, jitter, grey and blur of single images."""
        policy = TORCHVISION_POLICIES.get(self.auto_augment)
        return [*([policy()] if policy else []), *self._timm_transforms()[1].transforms]

    def _timm_transforms(self) -> tuple[transforms.Compose, transforms.Compose]:
        """timm's crop with flips, and its colour."""
        mean = tuple(self.mean)
        own_policy = self.auto_augment in TORCHVISION_POLICIES
        # timm takes more than it annotates: lists, and no jitter
        options: dict[str, Any] = {
            'scale': self.scale, 'ratio': self.ratio, 'color_jitter': None if own_policy else self.color_jitter}
        crop, color, _ = create_transform(
            self.input_size,
            is_training=True,
            separate=True,
            train_crop_mode=self.crop_mode if self.crop_mode in ('rrc', 'rkrc', 'rkrr') else None,
            hflip=self.hflip,
            vflip=self.vflip,
            **options,
            color_jitter_prob=self.color_jitter_prob,
            grayscale_prob=self.grayscale_prob,
            gaussian_blur_prob=self.gaussian_blur_prob,
            auto_augment=None if own_policy else self.auto_augment,
            interpolation=self.interpolation,
            mean=mean if len(mean) == 3 else mean * 3,  # the colour that fills what an RGB image leaves free
            std=tuple(self.std),
        )
        _allow_posterize_to_zero_bits(color)
        return crop, color

    def image_transform(self) -> Callable[[Any], Tensor]:
        """The part for single images, PIL image to uint8 tensor (C, H, W): crop, flips, colour."""
        return transforms.Compose(self.image_parts())

    def image_parts(self) -> tuple[Callable[[Any], Any], Callable[[Any], Any], Callable[[Any], Tensor]]:
        """:meth:`image_transform` in three: crop with flips, colour, and the conversion to a tensor."""
        if self.crop_mode in ('pad', 'none'):
            crop = [
                _Resize(self.input_size[-2:], self.interpolation),
                *([transforms.RandomCrop(self.input_size[-2:], self.padding)] if self.crop_mode == 'pad' else []),
                transforms.RandomHorizontalFlip(self.hflip),
                transforms.RandomVerticalFlip(self.vflip),
            ]
        else:
            crop = self._timm_transforms()[0].transforms
        channels = self.input_size[0]
        return (
            transforms.Compose([_Mode(3), *crop]), transforms.Compose(self._color_transforms()),
            transforms.Compose([_Mode(channels), transforms.PILToTensor()]))


def _allow_posterize_to_zero_bits(color: transforms.Compose) -> None:
    """timm's policies posterise down to 0 bits (black); Pillow 13 refuses that with an error in mid-epoch."""
    for policy in color.transforms:
        ops = getattr(policy, 'ops', None) or [op for sub in getattr(policy, 'policy', ()) for op in sub]
        for op in ops:
            if getattr(op.aug_fn, '__name__', '') == 'posterize':
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    if bits < 1:
        return Image.new(image.mode, image.size)
    return image if bits >= 8 else ImageOps.posterize(image, bits)


class _Mode:
    """Grey (1 channel) or RGB (3 channels), upright and with its levels kept, see :func:`convert_image`."""

    def __init__(self, channels: int) -> None:
        self.mode = {1: 'L', 3: 'RGB'}[check_option('channels', channels, (1, 3))]

    def __call__(self, image: Image.Image) -> Image.Image:
        return convert_image(image, self.mode)


class _Resize:
    """Resize and centre crop where an image has another size."""

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self.size = size[0], size[1]
        self.resize = create_transform(self.size, crop_pct=1.0, interpolation=interpolation, separate=False)
        self.resize = transforms.Compose(self.resize.transforms[:-2])  # without tensor and normalisation

    def __call__(self, image: Any) -> Any:
        return image if image.size == self.size[::-1] else self.resize(image)


class MultiView:
    """Several views of an image: one augmentation each, stacked to (V, C, H, W).

    Args:
        views: Augmentation of each view. Cutout and erasing of the first are applied, to the first view.
    """

    def __init__(self, views: Sequence[Augmentation]) -> None:
        self.views = tuple(views)
        self._transforms = [view.image_transform() for view in self.views]

    def __call__(self, image: Any) -> Tensor:
        return torch.stack([transform(image) for transform in self._transforms])

    def takes(self, image_size: tuple[int, int, int]) -> bool:
        """Whole batches of images of this size (channels, height, width) can be augmented."""
        return all(view.takes(image_size) for view in self.views)

    def batch_augment(self, seed: int = 0, whole: bool = False) -> BatchAugment:
        """See :meth:`Augmentation.batch_augment`."""
        first, *others = self.views
        return first.batch_augment(seed, whole, others)


class SplitViews:
    """A clean image and augmented copies, stacked to (V, C, H, W), as timm's ``--aug-splits``.

    All share crop and flips.

    Args:
        augmentation: Its colour and automatic augmentation change the copies alone; Cutout and erasing must be off.
        num_splits: V, >= 2.
    """

    def __init__(self, augmentation: Augmentation, num_splits: int) -> None:
        if augmentation.cutout or augmentation.reprob:
            raise ValueError('splits take no Cutout and no random erasing, because the first stays clean')
        self.num_splits = check_whole('num_splits', num_splits, 2)
        self._crop, self._color, self._convert = augmentation.image_parts()

    def __call__(self, image: Any) -> Tensor:
        image = self._crop(image)
        copies = [self._color(image) for _ in range(self.num_splits - 1)]
        return torch.stack([self._convert(one) for one in (image, *copies)])


def contrastive_views(
        augmentation: Augmentation, num_views: int, scale: tuple[float, float] = (0.2, 1.0)) -> MultiView:
    """The views of contrastive losses such as BCL (Zhu et al., CVPR 2022, https://arxiv.org/abs/2207.09052).

    View 1, for the classifier, is ``augmentation``. The others, for the projection head, are those of SimCLR (Chen et
    al., ICML 2020). They have a random resized crop of a share ``scale`` of the area and a flip. Colour jitter (0.4,
    0.4, 0.4, 0.1) has probability 0.8, grey 0.2.
    """
    contrastive = replace(
        augmentation, crop_mode='rrc', scale=scale, ratio=None, auto_augment=None,
        color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, grayscale_prob=0.2)
    return MultiView([augmentation] + [contrastive] * (num_views - 1))


def three_views(augmentation: Augmentation) -> MultiView:
    """The views of balanced contrastive learning, see :func:`contrastive_views`."""
    return contrastive_views(augmentation, 3)


def eval_transform(
        input_size: Sequence[int],
        interpolation: str = 'bilinear',
        crop_pct: float | None = None,
        crop_mode: str | None = None,
) -> Callable[[Any], Tensor]:
    """timm's evaluation transform up to normalisation: PIL image to uint8 tensor (C, H, W), no randomness."""
    resize = create_transform(
        (input_size[0], input_size[1], input_size[2]), is_training=False, interpolation=interpolation,
        crop_pct=crop_pct, crop_mode=crop_mode)
    return transforms.Compose(
        [_Mode(3), *resize.transforms[:-2], _Mode(input_size[0]), transforms.PILToTensor()])

"""What is done to training images, split into a part for single images (PIL) and a part for whole batches."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image, ImageOps
from timm.data import create_transform
from torch import Tensor
from torchvision import transforms

from .._validate import check_option
from .augment import BatchAugment

__all__ = ['Augmentation', 'MultiView', 'eval_transform', 'three_views']

CROP_MODES = ('pad', 'none', 'rrc', 'rkrc', 'rkrr')
CIFAR_POLICY = 'cifar10'


@dataclass(frozen=True)
class Augmentation:
    """Training augmentation by the names of timm's options.

    Attributes:
        input_size: Channels, height, width.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        interpolation: timm's name, for resizing.
        crop_mode: 'pad': ``padding`` black pixels around, then a random crop, the standard of CIFAR; images of another
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
        auto_augment: timm's AutoAugment, RandAugment or AugMix string, or 'cifar10' for the policy found on CIFAR-10.
        cutout: Side of the Cutout square in pixels; 0 off.
        reprob: Probability of random erasing.
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
    auto_augment: str | None = None
    cutout: int = 0
    reprob: float = 0.
    remode: str = 'const'

    def __post_init__(self) -> None:
        check_option('crop_mode', self.crop_mode, CROP_MODES)

    @property
    def batchwise(self) -> bool:
        """All of it can run on whole batches of images that have the input size."""
        return (
            self.crop_mode in ('pad', 'none') and not self.auto_augment and not self.color_jitter
            and not self.grayscale_prob)

    def batch_augment(self, seed: int = 0, whole: bool = False) -> BatchAugment:
        """The part for batches: Cutout, erasing and normalisation; with ``whole`` also crop and flips."""
        move = {}
        if whole:
            if not self.batchwise:
                raise ValueError('colour and automatic augmentation and resized crops work on single images')
            move = dict(padding=self.padding if self.crop_mode == 'pad' else 0, hflip=self.hflip, vflip=self.vflip)
        return BatchAugment(
            self.mean, self.std, cutout=self.cutout, reprob=self.reprob, remode=self.remode, seed=seed, **move)

    def image_transform(self) -> Callable[[Any], Tensor]:
        """The part for single images, PIL image to uint8 tensor (C, H, W): crop, flips, colour."""
        own_policy = self.auto_augment == CIFAR_POLICY
        mean = tuple(self.mean)
        crop, color, _ = create_transform(
            self.input_size,
            is_training=True,
            separate=True,
            train_crop_mode=self.crop_mode if self.crop_mode in ('rrc', 'rkrc', 'rkrr') else None,
            scale=self.scale,
            ratio=self.ratio,
            hflip=self.hflip,
            vflip=self.vflip,
            color_jitter=None if own_policy else self.color_jitter,
            color_jitter_prob=self.color_jitter_prob,
            grayscale_prob=self.grayscale_prob,
            auto_augment=None if own_policy else self.auto_augment,
            interpolation=self.interpolation,
            mean=mean if len(mean) == 3 else mean * 3,  # the colour that fills what an RGB image leaves free
            std=tuple(self.std),
        )
        if self.crop_mode in ('pad', 'none'):
            crop = transforms.Compose([
                _Resize(self.input_size[-2:], self.interpolation),
                *([transforms.RandomCrop(self.input_size[-2:], self.padding)] if self.crop_mode == 'pad' else []),
                transforms.RandomHorizontalFlip(self.hflip),
                transforms.RandomVerticalFlip(self.vflip),
            ])
        steps = [_Mode(3), crop, color, _Mode(self.input_size[0]), transforms.PILToTensor()]
        _allow_posterize_to_zero_bits(color)
        if own_policy:
            steps.insert(2, transforms.AutoAugment(transforms.AutoAugmentPolicy.CIFAR10))
        return transforms.Compose(steps)


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
    """Grey (1 channel) or RGB (3 channels), where an image has another mode."""

    def __init__(self, channels: int) -> None:
        self.mode = {1: 'L', 3: 'RGB'}[check_option('channels', channels, (1, 3))]

    def __call__(self, image: Image.Image) -> Image.Image:
        return image if image.mode == self.mode else image.convert(self.mode)


class _Resize:
    """Resize and centre crop where an image has another size."""

    def __init__(self, size: tuple[int, int], interpolation: str) -> None:
        self.size = tuple(size)
        self.resize = create_transform(self.size, crop_pct=1.0, interpolation=interpolation, separate=False)
        self.resize = transforms.Compose(self.resize.transforms[:-2])  # without tensor and normalisation

    def __call__(self, image: Any) -> Any:
        return image if image.size == self.size[::-1] else self.resize(image)


class MultiView:
    """Several views of an image: one transform each, stacked to (V, C, H, W)."""

    def __init__(self, views: Sequence[Callable[[Any], Tensor]]) -> None:
        self.views = tuple(views)

    def __call__(self, image: Any) -> Tensor:
        return torch.stack([view(image) for view in self.views])


def three_views(augmentation: Augmentation) -> MultiView:
    """The views of balanced contrastive learning (Zhu et al., CVPR 2022, https://arxiv.org/abs/2207.09052).

    View 1, for the classifier, is ``augmentation``. Views 2 and 3, for the projection head, are those of SimCLR (Chen
    et al., ICML 2020): random resized crop of 20% to 100% of the area, flip, colour jitter (0.4, 0.4, 0.4, 0.1) with
    probability 0.8, grey with probability 0.2.
    """
    contrastive = replace(
        augmentation, crop_mode='rrc', scale=(0.2, 1.0), ratio=None, auto_augment=None,
        color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, grayscale_prob=0.2).image_transform()
    return MultiView([augmentation.image_transform(), contrastive, contrastive])


def eval_transform(
        input_size: Sequence[int],
        interpolation: str = 'bilinear',
        crop_pct: float | None = None,
        crop_mode: str | None = None,
) -> Callable[[Any], Tensor]:
    """timm's evaluation transform up to normalisation: PIL image to uint8 tensor (C, H, W), no randomness."""
    resize = create_transform(
        tuple(input_size), is_training=False, interpolation=interpolation, crop_pct=crop_pct, crop_mode=crop_mode)
    return transforms.Compose([*resize.transforms[:-2], _Mode(input_size[0]), transforms.PILToTensor()])

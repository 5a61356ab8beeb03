"""Images to batches: sampler, augmentation and loaders of a run."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor

from .._registry import SAMPLERS
from ..data import (
    Augmentation,
    ImageSubset,
    InMemoryImages,
    SplitViews,
    contrastive_views,
    create_eval_loader,
    create_train_loader,
    eval_transform,
)
from ..evaluate.metrics.views import viewed_size
from ..samplers import create_sampler
from .data import DataParts
from .errors import ConfigError, one_line
from .options import AugmentationOptions, DataOptions, GKPOptions

PARTNER_SEED = 2 ** 20  # between the seeds of both loaders of a mixing


@dataclass(frozen=True)
class InputPipeline:
    """Makes the loaders of a run. This package shards the images over processes; Accelerate does not shard again.

    Attributes:
        data: Sampler, batch sizes and workers.
        augmentation: Augmentation of the training images.
        config: timm's data configuration of the model: input size, mean, deviation, interpolation, crop.
        accelerator: Names the device and the processes.
        seed: Seed of order and augmentation.
    """
    data: DataOptions
    augmentation: AugmentationOptions
    config: dict[str, Any]
    accelerator: Accelerator
    seed: int

    def training(
            self, images: Any, epochs: int, views: int = 1, view_scale: tuple[float, float] = (0.2, 1.0)) -> Any:
        """Loader of augmented training images, in the order of the sampler.

        Args:
            images: Training images.
            epochs: Epochs of the stage, for samplers that change over them.
            views: Views of each image, >= 1, as the loss declares.
            view_scale: Area that the random crops of the further views keep, as the loss declares.

        Raises:
            ConfigError: If sampler or augmentation do not take the options.
        """
        augmentation = self.training_augmentation(images)
        aa, splits = self.augmentation.aa, self.augmentation.aug_splits
        transform: Any = None
        try:
            if splits:
                transform = SplitViews(augmentation, splits)
            elif views > 1:
                transform = contrastive_views(augmentation, views, view_scale)
            return create_train_loader(
                images, self.sampler(images.targets, epochs), augmentation, self.data.batch_size, seed=self.seed,
                transform=transform, **self._where())
        except (AssertionError, TypeError, ValueError) as e:  # timm asserts what --aa says
            which = f' (--aa {aa})' if isinstance(e, AssertionError) and aa else ''
            raise ConfigError(f'sampler {self.data.sampler!r} or augmentation{which}: {one_line(e)}') from e

    def partners(self, images: Any, sampler: str, epochs: int) -> Any:
        """Loader with as many images as :meth:`training`, in the order of another sampler, augmented by other draws.

        Args:
            images: Training images.
            sampler: Name of the sampler.
            epochs: Epochs of the stage, for samplers that change over them.
        """
        draws = self.sampler(images.targets, epochs).num_samples
        data = replace(self.data, sampler=sampler, sampler_kwargs={'num_samples': draws})
        return replace(self, data=data, seed=self.seed + PARTNER_SEED).training(images, epochs)

    def sampler(self, targets: Tensor, epochs: int) -> Any:
        """The order of the images of an epoch, over all processes."""
        kwargs = dict(self.data.sampler_kwargs)
        if self.data.sampler in SAMPLERS and 'num_epochs' in SAMPLERS.info(self.data.sampler).needs:
            kwargs.setdefault('num_epochs', epochs)
        sampler = create_sampler(self.data.sampler, targets, seed=self.seed, **kwargs)
        repeats = self.augmentation.aug_repeats
        return RepeatedSampler(sampler, repeats) if repeats > 1 else sampler

    def evaluation(self, images: Any, views: int = 0) -> Any:
        """Loader under the evaluation transform that gives every image once over all processes.

        Args:
            images: Images of a part.
            views: Views of each image that the network will see; crops need a larger image.

        Raises:
            ConfigError: If the transform leaves nothing to crop.
        """
        config = self.config
        try:
            size = viewed_size(views, config['input_size'], config['crop_pct'])
        except ValueError as e:
            raise ConfigError(f'--tta {views}: {e}') from e
        crop_pct = config['crop_pct'] if size == tuple(config['input_size']) else 1.0
        ready = _has_size(images, size) and crop_pct in (None, 1.0)
        transform = None if ready else eval_transform(size, config['interpolation'], crop_pct, config['crop_mode'])
        return self._fixed(images, transform)

    def unaugmented(self, images: Any) -> Any:
        """Loader that gives every image once, as training sees it with ``--no-aug``."""
        augmentation = self.training_augmentation(images)
        ready = _has_size(images, augmentation.input_size)
        return self._fixed(images, None if ready else augmentation.image_transform())

    def augmented_in_order(self, images: Any) -> Any:
        """Loader of augmented training images in their order; ``set_epoch`` draws others.

        Over W processes, images r, r + W, ... go to process r, and the first ones once more where W does not divide
        their number.
        """
        return create_train_loader(
            images, InOrder(len(images), self.accelerator.num_processes), self.training_augmentation(images),
            self.data.validation_batch_size or max(self.data.batch_size, 128), seed=self.seed, drop_last=False,
            **self._where())

    def quality_images(self, options: GKPOptions, parts: DataParts) -> Any:
        """Loader of the images by which GKP judges classes: some of each, never of the test part."""
        from ..gkp import images_per_class
        images = parts.train if options.gkp_source == 'train' else parts.validation
        cap = options.gkp_images or images_per_class(parts.distribution.counts)
        return self.some_of_each_class(images, cap, self.data.data_seed)

    def some_of_each_class(self, images: Any, cap: int, seed: int) -> Any:
        """Loader, under the evaluation transform, of at most ``cap`` images of each class, drawn by ``seed``."""
        from ..gkp import capped_indices
        chosen = capped_indices(images.targets, cap, seed)
        if isinstance(images, InMemoryImages):
            images = InMemoryImages(
                images.images[chosen], images.targets[chosen], images.class_names, images.transform)
        else:
            images = ImageSubset(images, chosen)
        return self.evaluation(images)

    def training_augmentation(self, images: Any) -> Augmentation:
        """The training augmentation that the options name.

        The images choose the crop where no option does. Images in memory at the network's input size (CIFAR and its
        like) get 'pad'. All others get timm's random resized crop.

        Raises:
            ConfigError: If the options do not fit.
        """
        options, config = self.augmentation, self.config
        plain = {'input_size': tuple(config['input_size']), 'mean': config['mean'], 'std': config['std'],
                 'interpolation': config['interpolation']}
        if options.no_aug:
            return Augmentation(**plain, crop_mode='none', hflip=0.0)
        crop_mode = options.train_crop_mode
        if crop_mode is None:
            crop_mode = 'pad' if _has_size(images, config['input_size'], channels=False) else 'rrc'
        if options.train_interpolation == 'random' and crop_mode == 'pad':
            raise ConfigError(
                "--train-interpolation random is of timm's random crops; these images are padded and cropped at one "
                'size (--train-crop-mode rrc crops and resizes them)')
        plain['interpolation'] = options.train_interpolation or plain['interpolation']
        try:
            return Augmentation(
                **plain, crop_mode=crop_mode, scale=options.scale, ratio=options.ratio, hflip=options.hflip,
                vflip=options.vflip, color_jitter=options.color_jitter, color_jitter_prob=options.color_jitter_prob,
                grayscale_prob=options.grayscale_prob, gaussian_blur_prob=options.gaussian_blur_prob,
                auto_augment=options.aa, cutout=options.cutout, cutout_fill=options.cutout_fill, reprob=options.reprob,
                repeat_reprob=options.repeat_reprob, remode=options.remode)
        except ValueError as e:
            raise ConfigError(f'augmentation: {e}') from e

    def _fixed(self, images: Any, transform: Any) -> Any:
        batch_size = self.data.validation_batch_size or max(self.data.batch_size, 128)
        return create_eval_loader(
            images, self.config['mean'], self.config['std'], batch_size, transform=transform, **self._where())

    def _where(self) -> dict[str, Any]:
        accelerator = self.accelerator
        return {'device': accelerator.device, 'world': accelerator.num_processes, 'rank': accelerator.process_index,
                'workers': self.data.workers}


class RepeatedSampler:
    """Each image several times in a row, each time with another augmentation; the epoch keeps its length.

    Paper: E. Hoffer et al., "Augment Your Batch: Improving Generalization Through Instance Repetition", CVPR 2020,
    https://arxiv.org/abs/1901.09335

    Args:
        sampler: A sampler of this package.
        repeats: Draws of an image, > 0.
    """

    def __init__(self, sampler: Any, repeats: int) -> None:
        self.sampler = sampler
        self.repeats = repeats
        self.num_samples = sampler.num_samples

    def __len__(self) -> int:
        return self.num_samples

    def set_epoch(self, epoch: int) -> None:
        self.sampler.set_epoch(epoch)

    def order(self, epoch: int) -> Tensor:
        """Images of the epoch, (M,), int64."""
        return torch.repeat_interleave(self.sampler.order(epoch), self.repeats)[:self.num_samples]


class InOrder:
    """Sampler of every image in order, up to a multiple of the number of processes."""

    def __init__(self, num_images: int, world: int) -> None:
        self.num_images = num_images
        self.num_samples = -(-num_images // world) * world

    def __len__(self) -> int:
        return self.num_samples

    def order(self, epoch: int) -> Tensor:
        return torch.arange(self.num_samples, device='cpu') % self.num_images


def _has_size(images: Any, input_size: Any, channels: bool = True) -> bool:
    size = getattr(images, 'image_size', None)
    start = 0 if channels else 1
    return size is not None and tuple(size)[start:] == tuple(input_size)[start:]

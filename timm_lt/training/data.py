"""Training, validation and test part of a run, and their loaders."""

from argparse import Namespace
from dataclasses import dataclass
from typing import Any

from accelerate import Accelerator

from .._registry import LOSSES, SAMPLERS
from ..class_distribution import ClassDistribution
from ..data import (
    Augmentation,
    ImageReadError,
    ImagesDoNotFit,
    ImageSubset,
    InMemoryImages,
    contrastive_views,
    create_dataset,
    create_eval_loader,
    create_train_loader,
    drop_unreadable,
    eval_transform,
    find_split,
    get_class_names,
    keep_in_memory,
    long_tailed_subset,
    split_validation,
)
from ..samplers import create_sampler
from .config import ConfigError, one_line

TEST, VALIDATION = 'test', 'validation'
CHECKED_IMAGES = 50_000  # more than these are read once only, in training


@dataclass
class DataParts:
    """The images of a run.

    Attributes:
        train: Training images, after the long-tailed subset and the validation part were cut.
        validation: Images that may choose an epoch, or None.
        test: Images of the final figures.
        distribution: Images per class of ``train``.
        test_part: What the test images are, for the report.
        validation_part: What the validation images are, for the report.
    """
    train: Any
    validation: Any
    test: Any
    distribution: ClassDistribution
    test_part: str
    validation_part: str


def build_data(args: Namespace) -> DataParts:
    """Create the parts that the options name; a small set is decoded into memory.

    Raises:
        ConfigError: If a part is missing, empty or does not fit the others.
        ImageReadError: If images cannot be read.
    """
    name = args.dataset or ''
    options = dict(args.dataset_kwargs)
    if args.dataset_download:
        options['download'] = True
    for key in ('input_key', 'target_key', 'class_map'):
        if getattr(args, key):
            options[key] = getattr(args, key)
    try:
        return _build(args, name, options)
    except (ConfigError, ImageReadError):
        raise
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as e:
        # torchvision's answer to files that are not there
        download = '. Have them downloaded by --dataset-download' if 'download=True' in str(e) else ''
        raise ConfigError(f'data: {one_line(e, 1000)}{download}') from e


def _build(args: Namespace, name: str, options: dict[str, Any]) -> DataParts:
    def part(split: str, class_names: list[str] | None = None) -> Any:
        return create_dataset(
            name, args.data_dir, split, class_names=class_names, bad_images=args.bad_images, **options)

    train = part(args.train_split)
    names = get_class_names(train)
    test_split = args.test_split or find_split(name, args.data_dir, (TEST, VALIDATION), **options)
    if test_split:
        test, test_part = part(test_split, names), f'split {test_split!r}'
    elif args.test_fraction > 0:
        train, test = split_validation(train, args.test_fraction, args.data_seed)
        test_part = f'{args.test_fraction:g} of the images, held out before anything else'
    else:
        raise ConfigError('the data have no test part; name one by --test-split or hold out --test-fraction 0.2')
    if args.imbalance_ratio is not None:
        train = long_tailed_subset(
            train, args.imbalance_ratio, args.imbalance_profile, args.data_seed, n_max=args.images_per_class)
    elif args.images_per_class is not None:
        raise ConfigError('--images-per-class is the largest class of a long-tailed subset: give --imbalance-ratio too')
    validation, validation_part = None, 'none'
    if args.val_split:
        validation, validation_part = part(args.val_split, names), f'split {args.val_split!r}'
    elif args.val_fraction > 0:
        train, validation = split_validation(train, args.val_fraction, args.data_seed)
        validation_part = f'{args.val_fraction:g} of the training images'

    train, test = _readable(train, args), _readable(test, args)
    validation = None if validation is None else _readable(validation, args)
    distribution = _count('training', train, args.num_classes, names)
    distribution.require_images()
    for what, images in (('validation', validation), ('test', test)):
        if images is not None:
            if len(images) == 0:
                raise ConfigError(f'the {what} part has no images')
            # raises for a label that the training images do not know
            _count(what, images, distribution.num_classes)
    return DataParts(train, validation, test, distribution, test_part, validation_part)


def _count(
        what: str, images: Any, num_classes: int | None, names: list[str] | None = None) -> ClassDistribution:
    names = names if num_classes in (None, len(names or ())) else None
    try:
        return ClassDistribution.from_targets(images.targets, num_classes, names)
    except ValueError as e:
        raise ValueError(f'the {what} part: {e}') from e


def _readable(images: Any, args: Namespace) -> Any:
    """The images in memory where they fit; else, unless they are too many to decode twice, checked one by one."""
    if len(images) == 0:
        return images
    try:
        in_memory = keep_in_memory(images, args.in_memory, bad_images=args.bad_images)
    except ImagesDoNotFit as e:
        raise ConfigError(f'--in-memory on: {e}') from e
    if in_memory is not None:
        return in_memory
    if args.bad_images == 'skip' or len(images) <= CHECKED_IMAGES:
        return drop_unreadable(images, args.bad_images, args.workers)
    return images


def build_loaders(
        args: Namespace,
        data: DataParts,
        config: dict[str, Any],
        accelerator: Accelerator,
) -> tuple[Any, Any, Any]:
    """Training, validation (or None) and test loader; this package shards, Accelerate does not shard again.

    Args:
        args: Options.
        data: The parts.
        config: timm's data configuration of the model.
        accelerator: Names the device and the processes.
    """
    where = {
        'device': accelerator.device, 'world': accelerator.num_processes, 'rank': accelerator.process_index,
        'workers': args.workers,
    }
    augmentation = build_augmentation(args, config, data.train)
    views = LOSSES.trait(args.loss, 'views', 1)
    try:
        sampler = create_sampler(
            args.sampler, data.train.targets, seed=args.seed, **sampler_options(args))
        train = create_train_loader(
            data.train, sampler, augmentation, args.batch_size, seed=args.seed,
            transform=contrastive_views(augmentation, views) if views > 1 else None, **where)
    except (AssertionError, TypeError, ValueError) as e:  # timm asserts what --aa says
        aa = f' (--aa {args.aa})' if isinstance(e, AssertionError) and args.aa else ''
        raise ConfigError(f'sampler {args.sampler!r} or augmentation{aa}: {one_line(e)}') from e

    validation = None if data.validation is None else evaluation_loader(args, data.validation, config, accelerator)
    return train, validation, evaluation_loader(args, data.test, config, accelerator)


def evaluation_loader(args: Namespace, images: Any, config: dict[str, Any], accelerator: Accelerator) -> Any:
    """Loader under the evaluation transform that gives every image once over all processes."""
    size = getattr(images, 'image_size', None)
    as_they_are = size == tuple(config['input_size']) and config['crop_pct'] in (None, 1.0)
    transform = None if as_they_are else eval_transform(
        config['input_size'], config['interpolation'], config['crop_pct'], config['crop_mode'])
    batch_size = args.validation_batch_size or max(args.batch_size, 128)
    return create_eval_loader(
        images, config['mean'], config['std'], batch_size, transform=transform, device=accelerator.device,
        world=accelerator.num_processes, rank=accelerator.process_index, workers=args.workers)


def gkp_loader(args: Namespace, data: DataParts, config: dict[str, Any], accelerator: Accelerator) -> Any:
    """The images that GKP may look at: some of each class, of the training or the validation part, never the test."""
    from ..gkp import capped_indices, images_per_class
    images = data.train if args.gkp_source == 'train' else data.validation
    if images is None:
        raise ConfigError('--gkp-source validation needs a validation part: --val-split or --val-fraction')
    cap = args.gkp_images or images_per_class(data.distribution.counts)
    chosen = capped_indices(images.targets, cap, args.data_seed)
    if isinstance(images, InMemoryImages):
        images = InMemoryImages(images.images[chosen], images.targets[chosen], images.class_names, images.transform)
    else:
        images = ImageSubset(images, chosen)
    return evaluation_loader(args, images, config, accelerator)


def build_augmentation(args: Namespace, config: dict[str, Any], images: Any) -> Augmentation:
    """The training augmentation that the options name.

    The crop is chosen by the images where no option does: 'pad' for those in memory at the network's input size
    (CIFAR and its like), timm's random resized crop for all others.
    """
    plain = {'input_size': tuple(config['input_size']), 'mean': config['mean'], 'std': config['std'],
             'interpolation': config['interpolation']}
    if args.no_aug:
        return Augmentation(**plain, crop_mode='none', hflip=0.0)
    if args.train_interpolation:
        plain['interpolation'] = args.train_interpolation
    crop_mode = args.train_crop_mode
    if crop_mode is None:
        size = getattr(images, 'image_size', (None,) * 3)
        crop_mode = 'pad' if size[1:] == plain['input_size'][1:] else 'rrc'
    if args.train_interpolation == 'random' and crop_mode == 'pad':
        raise ConfigError(
            "--train-interpolation random is of timm's random crops; these images are padded and cropped at one size "
            '(--train-crop-mode rrc crops and resizes them)')
    try:
        return Augmentation(
            **plain, crop_mode=crop_mode, scale=args.scale, ratio=args.ratio, hflip=args.hflip, vflip=args.vflip,
            color_jitter=args.color_jitter, color_jitter_prob=args.color_jitter_prob,
            grayscale_prob=args.grayscale_prob, gaussian_blur_prob=args.gaussian_blur_prob, auto_augment=args.aa,
            cutout=args.cutout, cutout_fill=args.cutout_fill, reprob=args.reprob, remode=args.remode)
    except ValueError as e:
        raise ConfigError(f'augmentation: {e}') from e


def sampler_options(args: Namespace) -> dict[str, Any]:
    options = dict(args.sampler_kwargs)
    if args.sampler in SAMPLERS and 'num_epochs' in SAMPLERS.info(args.sampler).needs:
        options.setdefault('num_epochs', args.epochs)
    return options

"""Training, validation and test part of a run."""

from dataclasses import dataclass, field
from typing import Any

from ..class_distribution import ClassDistribution
from ..data import (
    ImageReadError,
    ImagesDoNotFit,
    ImageSubset,
    create_dataset,
    drop_unreadable,
    find_split,
    get_class_names,
    keep_in_memory,
    long_tailed_subset,
    split_validation,
)
from .errors import ConfigError, one_line
from .options import DataOptions

TEST, VALIDATION = 'test', 'validation'
CHECKED_IMAGES = 50_000  # more than these are read once only, in training


@dataclass
class DataParts:
    """The images of a run.

    Attributes:
        train: Training images, after the long-tailed subset and the validation part were cut.
        validation: Images that may choose an epoch, or None.
        test: Images of the final metrics.
        distribution: Images per class of ``train``.
        test_part: Origin of the test images, for the report.
        validation_part: Origin of the validation images, for the report.
        members: Of each part, the dataset's ``split`` that it is cut from and the number of ``images`` of this split.
            ``indices`` are the places in it, ascending; None: all of them. Unreadable images count.
    """
    train: Any
    validation: Any
    test: Any
    distribution: ClassDistribution
    test_part: str
    validation_part: str
    members: dict[str, Any] = field(default_factory=dict)


def build_data(options: DataOptions) -> DataParts:
    """Create the parts that the options name; a small set is decoded into memory.

    Raises:
        ConfigError: If a part is missing, empty or does not fit the others.
        ImageReadError: If images cannot be read.
    """
    kwargs = dict(options.dataset_kwargs)
    if options.dataset_download:
        kwargs['download'] = True
    for key in ('input_key', 'target_key', 'class_map'):
        if getattr(options, key):
            kwargs[key] = getattr(options, key)
    try:
        return _build(options, options.dataset or '', kwargs)
    except (ConfigError, ImageReadError):
        raise
    except (ImportError, OSError, RuntimeError, TypeError, ValueError) as e:
        # torchvision's answer to files that are not there
        download = '. Have them downloaded by --dataset-download' if 'download=True' in str(e) else ''
        raise ConfigError(f'data: {one_line(e, 1000)}{download}') from e


def _build(options: DataOptions, name: str, kwargs: dict[str, Any]) -> DataParts:
    def part(split: str, class_names: list[str] | None = None) -> Any:
        return create_dataset(
            name, options.data_dir, split, class_names=class_names, bad_images=options.bad_images, **kwargs)

    train = part(options.train_split)
    names = get_class_names(train)
    test_split = options.test_split or find_split(name, options.data_dir, (TEST, VALIDATION), **kwargs)
    if test_split:
        test, test_part = part(test_split, names), f'split {test_split!r}'
    elif options.test_fraction > 0:
        train, test = split_validation(train, options.test_fraction, options.data_seed)
        test_part = f'{options.test_fraction:g} of the images, held out before anything else'
    else:
        raise ConfigError('the data have no test part; name one by --test-split or hold out --test-fraction 0.2')
    if options.imbalance_ratio is not None:
        train = long_tailed_subset(
            train, options.imbalance_ratio, options.imbalance_profile, options.data_seed,
            n_max=options.images_per_class)
    validation, validation_part = None, 'none'
    if options.val_split:
        validation, validation_part = part(options.val_split, names), f'split {options.val_split!r}'
    elif options.val_fraction > 0:
        train, validation = split_validation(train, options.val_fraction, options.data_seed)
        validation_part = f'{options.val_fraction:g} of the training images'
    members = {
        'train': _members(options.train_split, train), 'test': _members(test_split or options.train_split, test)}
    if validation is not None:
        members['validation'] = _members(options.val_split or options.train_split, validation)

    train, mode = _readable('training', train, options, options.in_memory)
    test, mode = _readable('test', test, options, mode)
    if validation is not None:
        validation, mode = _readable('validation', validation, options, mode)
    distribution = _count('training', train, options.num_classes, names)
    distribution.require_images()
    for what, images in (('validation', validation), ('test', test)):
        if images is not None:
            if len(images) == 0:
                raise ConfigError(f'the {what} part has no images')
            # raises for a label that the training images do not know
            _count(what, images, distribution.num_classes)
    return DataParts(train, validation, test, distribution, test_part, validation_part, members)


def _members(split: str, images: ImageSubset) -> dict[str, Any]:
    total = len(images.dataset)
    indices = None if len(images) == total else [int(i) for i in images.indices]
    return {'split': split, 'images': total, 'indices': indices}


def _count(
        what: str, images: Any, num_classes: int | None, names: list[str] | None = None) -> ClassDistribution:
    names = names if num_classes in (None, len(names or ())) else None
    try:
        return ClassDistribution.from_targets(images.targets, num_classes, names)
    except ValueError as e:
        raise ValueError(f'the {what} part: {e}') from e


def _readable(what: str, images: Any, options: DataOptions, in_memory: str) -> tuple[Any, str]:
    """The images in memory where they fit; else, unless they are too many to decode twice, checked one by one.

    Args:
        what: Name of the part.
        images: Its images.
        options: What to do with unreadable images.
        in_memory: As ``--in-memory``.

    Returns:
        The images, and ``in_memory`` of the next part: 'off' after one that does not fit.
    """
    if len(images) == 0:
        return images, in_memory
    try:
        decoded = keep_in_memory(images, in_memory, bad_images=options.bad_images)
    except ImagesDoNotFit as e:
        raise ConfigError(f'--in-memory on: {e}') from e
    if decoded is not None:
        return decoded, in_memory
    if options.bad_images == 'skip' or options.check_images and len(images) <= CHECKED_IMAGES:
        images = drop_unreadable(images, options.bad_images, options.workers, what=f'{what} images')
    return images, 'off'

"""Options of the data: images, parts, samplers, loaders, augmentation."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._option import OptionGroup, option

INTERPOLATIONS = ('nearest', 'bilinear', 'bicubic', 'box', 'hamming', 'lanczos')


@dataclass(frozen=True)
class DataOptions(OptionGroup):
    """Which images are trained on, validated on and tested on, and how they are read."""
    title: ClassVar[str] = 'data'

    data_dir: str | None = option(None, 'folder of class folders, or root of the dataset', metavar='DIR')
    dataset: str | None = option(
        None, "timm dataset name ('torch/cifar10', 'hfds/NAME', ...), 'timm_lt/digits', or 'list/FILE': a text "
        'file of `path label` lines or a .csv, .tsv or .parquet table, paths under --data-dir ({split} in FILE becomes '
        'the part)')
    train_split: str = option('train', 'name of the training split')
    test_split: str | None = option(
        None, "split for the final metrics; None looks for 'test', then 'validation'; a dataset without one is split "
        'by the script (--test-fraction)')
    val_split: str | None = option(None, 'split that may choose the best epoch')
    val_fraction: float = option(
        0.0, 'cut this share of the training images, stratified, as the validation part that may choose the best '
        'epoch; 0: nothing is chosen', within='[0, 1)')
    test_fraction: float = option(0.2, 'share held out when the data have no test part', within='[0, 1)')
    dataset_download: bool = option(False, 'let timm download the dataset')
    dataset_kwargs: dict[str, Any] = option({}, "arguments of timm's create_dataset")
    class_map: str = option(
        '', 'text file with a class name on each line (label 0 is the first name), or a .json file of names and labels',
        metavar='FILE')
    input_key: str | None = option(
        None, "image column of a table or Hugging Face dataset; file types of a folder, e.g. 'png;jpg'")
    target_key: str | None = option(None, 'label column of a table or Hugging Face dataset')
    imbalance_ratio: float | None = option(
        None, 'make the training set long-tailed: largest over smallest class; None leaves it as it is',
        within='[1, inf)', hint='it is the largest over the smallest class size; some repositories write its inverse')
    imbalance_profile: str = option(
        'exp', 'class sizes fall exponentially, or in one step', choices=('exp', 'step'))
    images_per_class: int | None = option(None, 'size of the largest class; None: all it has', within='[1, inf)')
    data_seed: int = option(0, 'chooses the long-tailed subset and the splits', within='[0, inf)')
    num_classes: int | None = option(None, 'number of classes; None: as many as the dataset has', within='[1, inf)')
    bad_images: str = option(
        'error', 'unreadable images, empty class folders and rows without a label stop the run, or are left out, '
        'counted and named', choices=('error', 'skip'))
    check_images: bool = option(
        True, 'read every image of a set of at most 50,000 once before training; unchanged files are remembered')
    in_memory: str = option('auto', 'decode a small set once', choices=('auto', 'on', 'off'))
    sampler: str = option('instance_balanced', 'order of the training images, see timm_lt.list_samplers()')
    sampler_kwargs: dict[str, Any] = option({}, 'arguments of the sampler')
    workers: int = option(2, 'loader processes where images are not in memory', '-j', within='[0, inf)')
    batch_size: int = option(64, 'images per process and micro-batch', '-b', within='[1, inf)')
    validation_batch_size: int | None = option(
        None, 'images per process in evaluation; None: --batch-size, at least 128', '-vb', within='[1, inf)')


@dataclass(frozen=True)
class AugmentationOptions(OptionGroup):
    """Random changes of the training images, Mixup and CutMix."""
    title: ClassVar[str] = 'augmentation'

    no_aug: bool = option(False, 'no augmentation at all')
    train_crop_mode: str | None = option(
        None, "'pad' (4 pixels, then a random crop) or one of timm's; None: 'pad' for images that have the network's "
        "size, else timm's")
    train_interpolation: str = option(
        '', "resampling of timm's random crops; empty: that of the evaluation", choices=('', 'random', *INTERPOLATIONS))
    scale: list[float] | None = option(None, "area of timm's random crops", within='(0, inf)', nargs=2)
    ratio: list[float] | None = option(None, "aspect ratio of timm's random crops", within='(0, inf)', nargs=2)
    hflip: float = option(0.5, 'probability of a horizontal flip', within='[0, 1]')
    vflip: float = option(0.0, 'probability of a vertical flip', within='[0, 1]')
    color_jitter: float | None = option(None, 'strength of the colour jitter; None: none', within='[0, inf)')
    color_jitter_prob: float | None = option(None, 'probability of the colour jitter; None: always', within='[0, 1]')
    grayscale_prob: float = option(0.0, 'probability of a grey image', within='[0, 1]')
    gaussian_blur_prob: float = option(0.0, 'probability of a Gaussian blur', within='[0, 1]')
    aa: str | None = option(
        None, "timm's AutoAugment, RandAugment or AugMix string, or a policy of torchvision: 'cifar10', 'imagenet', "
        "'svhn', 'trivial'")
    cutout: int = option(0, 'side of the square that Cutout paints over, in pixels', within='[0, inf)')
    cutout_fill: str = option(
        'mean', 'colour of the square; official pipelines of CIFAR-LT paint it black', choices=('mean', 'black'))
    reprob: float = option(0.0, 'probability of random erasing', within='[0, 1]')
    repeat_reprob: float | None = option(
        None, 'the same for an image that an oversampling --sampler has drawn before in the epoch; None: --reprob',
        within='[0, 1]')
    remode: str = option(
        'pixel', 'colour of an erased box: mean, one random colour, noise', choices=('const', 'rand', 'pixel'))
    aug_splits: int = option(
        0, 'views of each image for --loss jsd, one clean and the others changed by --aa or colour; 0: one view',
        within='[0, inf)')
    aug_repeats: int = option(0, 'augment an image so many times in an epoch; 0 and 1: once', within='[0, inf)')
    mix: str | None = option(
        None, 'mixing that favours rare classes, see timm_lt.data.list_mixings(); in place of --mixup and --cutmix')
    mix_kwargs: dict[str, Any] = option({}, 'arguments of the mixing')
    mixup: float = option(0.0, 'alpha of Mixup; 0: off', within='[0, inf)')
    cutmix: float = option(0.0, 'alpha of CutMix; 0: off', within='[0, inf)')
    cutmix_minmax: list[float] | None = option(
        None, 'smallest and largest share of the side of a CutMix box; switches CutMix on', within='[0, 1]', nargs=2)
    mixup_prob: float = option(1.0, 'probability that a batch is mixed', within='[0, 1]')
    mixup_switch_prob: float = option(0.5, 'probability of CutMix where Mixup is on too', within='[0, 1]')
    mixup_mode: str = option('batch', 'what shares one mixing weight', choices=('batch', 'pair', 'elem'))
    mixup_off_epoch: int = option(0, 'epoch from which on nothing is mixed; 0: never', within='[0, inf)')

    @property
    def colours(self) -> bool:
        """Something changes the copies of --aug-splits."""
        changes = (self.aa, self.color_jitter, self.grayscale_prob, self.gaussian_blur_prob)
        return any(changes) and not self.no_aug

    @property
    def mixes(self) -> bool:
        """Images are mixed, so that targets are soft."""
        return bool(self.mix) or self.mixup_or_cutmix

    @property
    def mixup_or_cutmix(self) -> bool:
        """timm's Mixup or CutMix is on."""
        return self.mixup > 0 or self.cutmix > 0 or self.cutmix_minmax is not None

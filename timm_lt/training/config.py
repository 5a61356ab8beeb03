"""Options of the training script: timm's names where timm has one, YAML files, and the resolved result."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml
from timm.utils import ParseKwargs

from .._validate import nearest_names
from ..class_distribution import SPLIT_RULES, parse_split_thresholds

# read by nobody but the run itself: two runs that differ only here are the same configuration
NOT_CONFIGURATION = frozenset({
    'config', 'resume', 'output', 'experiment', 'workers', 'log_interval', 'log_with', 'checkpoint_every',
    'checkpoint_steps', 'quiet', 'data_dir', 'push_to_hub', 'private', 'revision', 'published', 'hub',
})

# what a recipe says about itself; training ignores it, the model card shows it
METADATA = {
    'published': ('top1', 'many', 'medium', 'few', 'network', 'source', 'note'),
    'hub': ('title', 'license', 'tags', 'dataset', 'dataset_name'),
}


# what the run without options uses instead of the general defaults: about a minute on a CPU
DIGITS_DEFAULTS = {'imbalance_ratio': 50.0, 'epochs': 20, 'warmup_epochs': 2, 'hflip': 0.0, 'lr': 0.1}


class NegativeFlag(argparse.BooleanOptionalAction):
    """A flag whose name begins with ``no-``, which argparse would read as the negative of another."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        setattr(namespace, self.dest, not option_string.startswith('--no-no-'))


class ConfigError(ValueError):
    """A configuration that cannot be run; the message says which option and what is allowed."""


def one_line(error: BaseException, most: int = 300) -> str:
    """The text of an error of another library, on one line; its kind where it has no text."""
    text = ' '.join(str(error).split()) or type(error).__name__
    return text if len(text) <= most else f'{text[:most]} ...'


def build_parser() -> argparse.ArgumentParser:
    """The parser of ``train_lt.py``. Every option can stand in a YAML file under its name with underscores."""
    parser = argparse.ArgumentParser(
        prog='train_lt.py', allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Train and evaluate a timm model on long-tailed images. Without options: embedded digits on a CPU.')
    flag = argparse.BooleanOptionalAction
    parser.add_argument('data_dir_positional', nargs='?', metavar='DIR', default=None, help='same as --data-dir')
    parser.add_argument('--config', metavar='FILE.yaml', default=None, help='options of a file; the command line wins')

    g = parser.add_argument_group('data')
    g.add_argument('--data-dir', default=None, metavar='DIR', help='folder of class folders, or root of the dataset')
    g.add_argument('--dataset', default=None, help="timm dataset name ('torch/cifar10', 'hfds/NAME', ...), "
                   "'timm_lt/digits', or 'list/FILE.txt' with `path label` lines under --data-dir ({split} in FILE is "
                   'replaced by the name of the part)')
    g.add_argument('--train-split', default='train', help='name of the training split')
    g.add_argument('--test-split', default=None, help="split for the final figures; None looks for 'test', then "
                   "'validation'; a dataset without one is split by the script (--test-fraction)")
    g.add_argument('--val-split', default=None, help='split that may choose the best epoch')
    g.add_argument('--val-fraction', type=float, default=0.0, help='cut this share of the training images, stratified, '
                   'as the validation part that may choose the best epoch; 0: nothing is chosen')
    g.add_argument('--test-fraction', type=float, default=0.2, help='share held out when the data have no test part')
    g.add_argument('--dataset-download', action=flag, default=False, help='let timm download the dataset')
    g.add_argument('--dataset-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    g.add_argument('--input-key', default=None, help='image column of a Hugging Face dataset')
    g.add_argument('--target-key', default=None, help='label column of a Hugging Face dataset')
    g.add_argument('--imbalance-ratio', type=float, default=None, help='make the training set long-tailed: '
                   'largest over smallest class, >= 1; None leaves it as it is')
    g.add_argument('--imbalance-profile', default='exp', choices=['exp', 'step'])
    g.add_argument('--images-per-class', type=int, default=None, help='size of the largest class; None: all it has')
    g.add_argument('--data-seed', type=int, default=0, help='chooses the long-tailed subset and the splits')
    g.add_argument('--num-classes', type=int, default=None, help='None: as many as the dataset has')
    g.add_argument('--bad-images', default='error', choices=['error', 'skip'], help='unreadable images stop the run '
                   'or are left out, counted and named')
    g.add_argument('--in-memory', default='auto', choices=['auto', 'on', 'off'], help='decode a small set once')
    g.add_argument('--sampler', default='instance_balanced', help='see timm_lt.list_samplers()')
    g.add_argument('--sampler-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    g.add_argument('-j', '--workers', type=int, default=2, help='loader processes where images are not in memory')
    g.add_argument('-b', '--batch-size', type=int, default=64, help='images per process and micro-batch')
    g.add_argument('-vb', '--validation-batch-size', type=int, default=None)

    g = parser.add_argument_group('model')
    g.add_argument('--model', default='resnet20_cifar', help='any model of timm')
    g.add_argument('--model-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    g.add_argument('--pretrained', action=flag, default=False)
    g.add_argument('--initial-checkpoint', default='', help='weights to start from')
    g.add_argument('--cosine-classifier', action=flag, default=None, help='normalised features and class weights; '
                   'None: where the loss is defined on cosines')
    g.add_argument('--drop', type=float, default=0.0, help='dropout rate')
    g.add_argument('--drop-path', type=float, default=None, help='stochastic depth rate')
    g.add_argument('--input-size', type=int, nargs=3, default=None, metavar=('C', 'H', 'W'))
    g.add_argument('--img-size', type=int, default=None)
    g.add_argument('--crop-pct', type=float, default=None)
    g.add_argument('--mean', type=float, nargs='+', default=None)
    g.add_argument('--std', type=float, nargs='+', default=None)
    g.add_argument('--interpolation', default='')
    g.add_argument('--channels-last', action=flag, default=False)
    g.add_argument('--grad-checkpointing', action=flag, default=False)
    g.add_argument('--torchcompile', nargs='?', const='inductor', default=None, metavar='BACKEND')
    g.add_argument('--sync-bn', action=flag, default=False, help='BatchNorm over all processes (GPU)')
    g.add_argument('--model-ema', action=flag, default=False, help='report the moving average of the weights')
    g.add_argument('--model-ema-decay', type=float, default=0.9998)
    g.add_argument('--model-ema-warmup', action=flag, default=False)

    g = parser.add_argument_group('loss')
    g.add_argument('--loss', default='balanced_softmax', help="see timm_lt.list_losses(), or timm's own, e.g. ce")
    g.add_argument('--loss-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    g.add_argument('--smoothing', type=float, default=0.0, help='label smoothing')
    g.add_argument('--drw-epoch', type=int, default=None, help='from this epoch on, effective-number class weights')
    g.add_argument('--drw-beta', type=float, default=0.9999)

    g = parser.add_argument_group('optimizer')
    g.add_argument('--opt', default='sgd', help='any of timm, or timm_lt.list_optimizers()')
    g.add_argument('--opt-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    g.add_argument('--opt-eps', type=float, default=None)
    g.add_argument('--opt-betas', type=float, nargs='+', default=None)
    g.add_argument('--momentum', type=float, default=0.9)
    g.add_argument('--weight-decay', type=float, default=5e-4)
    g.add_argument('--filter-bias-and-bn', action=flag, default=True, help='no weight decay on biases and norms')
    g.add_argument('--layer-decay', type=float, default=None)
    g.add_argument('--clip-grad', type=float, default=None)
    g.add_argument('--clip-mode', default='norm', choices=['norm', 'value', 'agc'])
    g.add_argument('--grad-accum-steps', type=int, default=1)

    g = parser.add_argument_group('GKP', 'grouped knowledge preservation, with --opt gsa')
    g.add_argument('--gkp', action=flag, default=False, help='group classes by a memory bank, preserve what it holds')
    g.add_argument('--gkp-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
                   help='options of timm_lt.gkp.GKP: num_groups=4 regroup_every=10 strength=100 ...')
    g.add_argument('--gkp-source', default='train', choices=['train', 'validation'], help='part whose images '
                   '(evaluation transform) tell the quality of a class')
    g.add_argument('--gkp-images', type=int, default=None, help='such images of each class, at most; None: as many as '
                   'make a tenth of the training images')

    g = parser.add_argument_group('schedule')
    g.add_argument('--epochs', type=int, default=100)
    g.add_argument('--sched', default='cosine')
    g.add_argument('--sched-on-updates', action=flag, default=False)
    g.add_argument('--lr', type=float, default=None, help='None: --lr-base for a batch of 256, scaled')
    g.add_argument('--lr-base', type=float, default=0.1)
    g.add_argument('--lr-base-size', type=int, default=256)
    g.add_argument('--lr-base-scale', default='', choices=['', 'linear', 'sqrt'])
    g.add_argument('--warmup-lr', type=float, default=1e-5)
    g.add_argument('--min-lr', type=float, default=0.0)
    g.add_argument('--warmup-epochs', type=int, default=5)
    g.add_argument('--warmup-prefix', action=flag, default=False)
    g.add_argument('--cooldown-epochs', type=int, default=0)
    g.add_argument('--decay-epochs', type=float, default=90)
    g.add_argument('--decay-milestones', type=int, nargs='+', default=[160, 180])
    g.add_argument('--decay-rate', type=float, default=0.1)

    g = parser.add_argument_group('post-hoc correction')
    g.add_argument('--posthoc', default=None, help="'rebalance', 'logit_adjust', 'tau_normalize' or 'temperature': "
                   'kept beside the model, its figures stand beside those without')
    g.add_argument('--posthoc-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V',
                   help='tau=1.0 (absent: chosen on the validation part, else 1); rebalance also transductive=True')

    g = parser.add_argument_group('second stage')
    g.add_argument('--stage2', default=None, help='classifier method after the epochs, see '
                   'timm_lt.two_stage.list_stage2(); --epochs 0 starts it on the given checkpoint')
    g.add_argument('--stage2-kwargs', nargs='*', default={}, action=ParseKwargs, metavar='K=V')
    g.add_argument('--stage2-epochs', type=int, default=None, help="None: the method's")
    g.add_argument('--stage2-lr', type=float, default=None, help="None: the method's")
    g.add_argument('--stage2-sampler', default=None, help="None: the method's")
    g.add_argument('--stage2-loss', default=None, help="None: the method's")
    g.add_argument('--stage2-cache-features', action=flag, default=None, help='compute features once, under the '
                   'evaluation transform, or that of training with --no-aug; None: only with --no-aug')

    g = parser.add_argument_group('augmentation')
    g.add_argument('--no-aug', action=NegativeFlag, default=False, help='no augmentation at all')
    g.add_argument('--train-crop-mode', default=None, help="'pad' (4 pixels, then a random crop) or one of timm's; "
                   "None: 'pad' for images that have the network's size, else timm's")
    g.add_argument('--scale', type=float, nargs=2, default=None)
    g.add_argument('--ratio', type=float, nargs=2, default=None)
    g.add_argument('--hflip', type=float, default=0.5)
    g.add_argument('--vflip', type=float, default=0.0)
    g.add_argument('--color-jitter', type=float, default=None)
    g.add_argument('--aa', default=None, help="timm's AutoAugment or RandAugment string, or 'cifar10'")
    g.add_argument('--cutout', type=int, default=0, help='side of the square set to the mean, in pixels')
    g.add_argument('--reprob', type=float, default=0.0)
    g.add_argument('--remode', default='pixel')
    g.add_argument('--mixup', type=float, default=0.0, help='alpha; 0 off')
    g.add_argument('--cutmix', type=float, default=0.0, help='alpha; 0 off')
    g.add_argument('--mixup-prob', type=float, default=1.0)
    g.add_argument('--mixup-switch-prob', type=float, default=0.5)
    g.add_argument('--mixup-mode', default='batch', choices=['batch', 'pair', 'elem'])
    g.add_argument('--mixup-off-epoch', type=int, default=0)

    g = parser.add_argument_group('run')
    g.add_argument('--seed', type=int, default=42)
    g.add_argument('--mixed-precision', default=None, choices=['no', 'fp16', 'bf16'], help='None: as accelerate says')
    g.add_argument('--output', default='output', metavar='DIR')
    g.add_argument('--experiment', default='', metavar='NAME', help='folder of the run; empty: named after its options')
    g.add_argument('--resume', default='', metavar='auto|DIR', help="'auto': go on where this run's folder stands, "
                   'or start it; DIR: the folder of a run')
    g.add_argument('--checkpoint-every', type=int, default=1, help='epochs between checkpoints')
    g.add_argument('--checkpoint-steps', type=int, default=0, help='also every so many steps; 0: only at epochs')
    g.add_argument('--split-rule', default='auto', help="many / medium / few: 'gt100_lt20', 'ge100_le20', 'thirds', "
                   "'MANY,FEW', or 'auto': gt100_lt20 where some class has fewer than 20 images, else thirds")
    g.add_argument('--bootstrap', type=int, default=0, help='resamples for confidence intervals; 0: none')
    g.add_argument('--log-interval', type=int, default=50, help='steps between updates of the progress line')
    g.add_argument('--log-with', default=None, help='tracker of Accelerate, e.g. tensorboard')
    g.add_argument('--quiet', action=flag, default=False)

    g = parser.add_argument_group('Hugging Face Hub')
    g.add_argument('--push-to-hub', default=None, metavar='USER/NAME', help='upload the finished checkpoint')
    g.add_argument('--private', action=flag, default=False, help='make a new repository private')
    g.add_argument('--revision', default=None, help='branch on the Hub; made if it does not exist')
    parser.set_defaults(**dict.fromkeys(METADATA))
    return parser


def parse_args(argv: Sequence[str] | None = None) -> argparse.Namespace:
    """Resolve the options: defaults, then the file, then the command line.

    Raises:
        ConfigError: For an unknown key of the file (with the nearest names) or a value that cannot be meant.
    """
    parser = build_parser()
    first, _ = parser.parse_known_args(argv)
    options = load_config(first.config, parser) if first.config else {}
    parser.set_defaults(**options)
    first, _ = parser.parse_known_args(argv)
    if not (first.dataset or first.data_dir or first.data_dir_positional):
        parser.set_defaults(dataset='timm_lt/digits', **{k: v for k, v in DIGITS_DEFAULTS.items() if k not in options})
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        known = [o for a in parser._actions for o in a.option_strings]
        raise ConfigError(f'unknown option {unknown[0]!r}. {nearest_names(unknown[0].split("=")[0], known)}')
    positional = args.__dict__.pop('data_dir_positional')
    if positional and args.data_dir and positional != args.data_dir:
        raise ConfigError(f'two data folders are given: {positional!r} and --data-dir {args.data_dir!r}')
    args.data_dir = args.data_dir or positional
    check_args(args)
    return args


def load_config(path: str | Path, parser: argparse.ArgumentParser | None = None) -> dict[str, Any]:
    """Options of a YAML file, each checked against the parser; ``base:`` names files (relative) that come first.

    Raises:
        ConfigError: If the file is missing or no mapping, or a key or value is not known.
    """
    parser = parser or build_parser()
    path = Path(path)
    try:
        content = yaml.safe_load(path.read_text(encoding='utf-8')) or {}
    except FileNotFoundError:
        raise ConfigError(f'config file {path} does not exist') from None
    except (OSError, UnicodeDecodeError) as e:
        raise ConfigError(f'config file {path} cannot be read: {e}') from e
    except yaml.YAMLError as e:
        raise ConfigError(f'config file {path} is not YAML: {e}') from e
    if not isinstance(content, dict):
        raise ConfigError(f'config file {path} must hold `key: value` lines, got {type(content).__name__}')
    actions = {a.dest: a for a in parser._actions if a.dest not in ('help', 'config', 'data_dir_positional')}
    options: dict[str, Any] = {}
    bases = content.pop('base', [])
    for base in [bases] if isinstance(bases, str) else bases:
        options.update(load_config(path.parent / base, parser))
    for key, value in content.items():
        if key in METADATA:
            options[key] = _checked_metadata(key, value, path)
            continue
        if key not in actions:
            known = [*actions, *METADATA, 'base']
            raise ConfigError(f'config file {path}: unknown key {key!r}. {nearest_names(key, known)}')
        options[key] = _checked_value(actions[key], value, path)
    return options


def _checked_metadata(key: str, value: Any, path: Path) -> dict[str, Any] | None:
    """A ``published:`` or ``hub:`` block; a published figure needs its source."""
    if value is None:
        return None
    if not isinstance(value, dict):
        raise ConfigError(f'config file {path}: {key} must hold `key: value` pairs, got {value!r}')
    for name in value:
        if name not in METADATA[key]:
            raise ConfigError(f'config file {path}: {key}.{name} is unknown. {nearest_names(name, METADATA[key])}')
    if key == 'published' and not value.get('source'):
        raise ConfigError(f'config file {path}: published needs a source, the paper and table of the figure')
    return value


def _checked_value(action: argparse.Action, value: Any, path: Path) -> Any:
    """A YAML value as the command line would have given it (YAML reads 1e-3 as text)."""
    where = f'config file {path}: {action.dest}'
    if value is None:
        return action.default
    if isinstance(action, argparse.BooleanOptionalAction):
        if not isinstance(value, bool):
            raise ConfigError(f'{where} must be true or false, got {value!r}')
        return value
    if isinstance(action, ParseKwargs):
        if not isinstance(value, dict):
            raise ConfigError(f'{where} must hold `key: value` pairs, got {value!r}')
        return value
    many = action.nargs in ('+', '*') or isinstance(action.nargs, int)
    values = value if many else [value]
    if not isinstance(values, list):
        raise ConfigError(f'{where} must be a list, got {value!r}')
    try:
        values = [v if action.type is None else action.type(v) for v in values]
    except (TypeError, ValueError):
        raise ConfigError(f'{where} must be {action.type.__name__}, got {value!r}') from None
    if action.type is None and not many and not isinstance(value, str):
        values = [str(value)]
    for v in values:
        if action.choices is not None and v not in action.choices:
            raise ConfigError(f'{where} must be one of {list(action.choices)}, got {v!r}')
    if isinstance(action.nargs, int) and len(values) != action.nargs:
        raise ConfigError(f'{where} needs {action.nargs} values, got {value!r}')
    return values if many else values[0]


def check_args(args: argparse.Namespace) -> None:
    """Raise a ConfigError for numbers that no run can use."""
    least = {
        'epochs': 0 if args.stage2 else 1, 'batch_size': 1, 'grad_accum_steps': 1, 'checkpoint_every': 1, 'workers': 0,
        'log_interval': 1,
        'warmup_epochs': 0, 'bootstrap': 0, 'checkpoint_steps': 0, 'cutout': 0, 'data_seed': 0,
        'validation_batch_size': 1, 'stage2_epochs': 1, 'num_classes': 1, 'images_per_class': 1, 'img_size': 1,
    }
    for name, low in least.items():
        if getattr(args, name) is not None and getattr(args, name) < low:
            raise ConfigError(f'{_option(name)} must be >= {low}, got {getattr(args, name)}')
    if not 0 <= args.seed < 2 ** 32:
        raise ConfigError(f'--seed must be in [0, 2**32 - 1], got {args.seed}')
    if args.imbalance_ratio is not None and not args.imbalance_ratio >= 1:
        raise ConfigError(
            f'--imbalance-ratio is the largest over the smallest class size, so >= 1, got {args.imbalance_ratio}; '
            f'some repositories write its inverse')
    for name in ('val_fraction', 'test_fraction', 'smoothing', 'drop', 'drop_path'):
        if getattr(args, name) is not None and not 0 <= getattr(args, name) < 1:
            raise ConfigError(f'{_option(name)} must be in [0, 1), got {getattr(args, name)}')
    if args.val_fraction and args.val_split:
        raise ConfigError('--val-split and --val-fraction both name a validation part; give one')
    if args.split_rule not in ('auto', 'thirds', *SPLIT_RULES):
        try:
            parse_split_thresholds(args.split_rule)
        except ValueError as e:
            raise ConfigError(f"--split-rule: {e}, or 'auto'") from e
    if args.sched == 'plateau' and not (args.val_split or args.val_fraction):
        raise ConfigError(
            '--sched plateau follows the validation part: name one by --val-split, or cut it by --val-fraction 0.1')
    if (args.mixup or args.cutmix) and args.batch_size % 2:
        raise ConfigError(f'Mixup and CutMix pair images of a batch: --batch-size must be even, got {args.batch_size}')
    if args.stage2 is None:  # the empty name switches off what a file asks for
        given = [n for n in vars(args) if n.startswith('stage2_') and getattr(args, n) not in (None, {})]
        if given:
            raise ConfigError(f'{_option(given[0])} is of the second stage: name one by --stage2, or leave it out')
    if args.push_to_hub:
        from ..hub import HubError, check_repo_id
        try:
            check_repo_id(args.push_to_hub)
        except HubError as e:
            raise ConfigError(f'--push-to-hub: {e}') from e
    elif args.private or args.revision:
        raise ConfigError('--private and --revision are of --push-to-hub USER/NAME, which is not given')
    if args.warmup_epochs >= args.epochs and args.epochs > 1:
        args.warmup_epochs = args.epochs // 5
    elif args.epochs <= 1:
        args.warmup_epochs = 0


def _option(name: str) -> str:
    return '--' + name.replace('_', '-')


def configuration(args: argparse.Namespace | dict[str, Any]) -> dict[str, Any]:
    """What defines the run: the options less those that only say where and how it is carried out."""
    values = args if isinstance(args, dict) else vars(args)
    return {k: _plain(v) for k, v in values.items() if k not in NOT_CONFIGURATION}


def _plain(value: Any) -> Any:
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def to_yaml(args: argparse.Namespace) -> str:
    """The resolved options, as ``--config`` reads them back."""
    return yaml.safe_dump({k: _plain(v) for k, v in vars(args).items() if k != 'config'}, sort_keys=True)


def differing_keys(a: dict[str, Any], b: dict[str, Any]) -> list[str]:
    """Names of the options in which two configurations differ, sorted."""
    a, b = configuration(a), configuration(b)
    return sorted(k for k in a.keys() | b.keys() if a.get(k) != b.get(k))

"""The command line: an argparse parser made from the declared options."""

import argparse
import dataclasses
from collections.abc import Collection, Sequence
from typing import Any, NoReturn

from ..._validate import nearest_names
from ..errors import ConfigError
from ._composed import GROUPS, OPTIONS, Options
from ._config_file import load_config
from ._option import OptionInfo
from ._rules import check_options, settled
from ._timm_names import refusal

POSITIONAL = 'data_dir_positional'

DIGITS = 'timm_lt/digits'
# the run without options uses these instead of the general defaults: about a minute on a CPU
DIGITS_DEFAULTS: dict[str, Any] = {
    'model': 'resnet20_cifar', 'imbalance_ratio': 50.0, 'epochs': 20, 'warmup_epochs': 2, 'hflip': 0.0, 'lr': 0.1}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigError(message)


class _NegativeFlag(argparse.BooleanOptionalAction):
    """A flag whose name begins with ``no-``, which argparse would read as the negative of another."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        setattr(namespace, self.dest, not str(option_string).startswith('--no-no-'))


class _KeyValues(argparse.Action):
    """``key=value`` pairs as a dict; a value is read as a Python literal where it is one, else as text."""

    def __call__(self, parser: Any, namespace: Any, values: Any, option_string: str | None = None) -> None:
        from timm.utils import ParseKwargs
        for pair in values:
            if '=' not in pair or pair.startswith('='):
                raise ConfigError(f'{option_string} takes key=value pairs, got {pair!r}')
        ParseKwargs(self.option_strings, self.dest)(parser, namespace, values, option_string)


def build_parser(prog: str = 'train_lt.py', only: Collection[str] | None = None) -> argparse.ArgumentParser:
    """The parser of ``train_lt.py``. Every option can be a key of a YAML file, with underscores.

    Args:
        prog: Name of the command.
        only: Options to have, for a short help; None: all.
    """
    parser = _Parser(
        prog=prog, allow_abbrev=False, formatter_class=argparse.ArgumentDefaultsHelpFormatter,
        description='Train and evaluate a timm model on long-tailed images. Without options: embedded digits on a CPU.',
        epilog='Exit status: 0 all is written; 2 something that you can mend, in one sentence; 3 trained and measured, '
               'but a report or model card is missing; 1 a fault after training; 130 interrupted.')
    parser.add_argument(POSITIONAL, nargs='?', metavar='DIR', default=None, help='same as --data-dir')
    parser.add_argument(
        '-c', '--config', metavar='FILE.yaml', default=None,
        help='options of a file, or the name of a recipe of the package; the command line wins')
    for group in GROUPS:
        infos = [OPTIONS[f.name] for f in dataclasses.fields(group) if only is None or f.name in only]
        flags = [info for info in infos if not info.file_only]
        if flags:
            section = parser.add_argument_group(group.title, group.__doc__)
            for info in flags:
                section.add_argument(*info.flags, info.flag, **_argument(info))
    parser.set_defaults(**{info.name: info.default for info in OPTIONS.values() if info.file_only})
    return parser


def _argument(info: OptionInfo) -> dict[str, Any]:
    common = {'dest': info.name, 'default': info.default, 'help': info.help.replace('%', '%%')}
    if info.type is bool:
        return common | {'action': _NegativeFlag if info.name.startswith('no_') else argparse.BooleanOptionalAction}
    if info.type is dict:
        return common | {'nargs': '*', 'action': _KeyValues, 'metavar': 'K=V'}
    further = {'nargs': info.nargs, 'const': info.const, 'metavar': info.metavar, 'choices': info.choices}
    return common | {'type': info.type} | {k: v for k, v in further.items() if v is not None}


def parse_options(argv: Sequence[str] | None = None) -> Options:
    """Resolve the options: defaults, then the file, then the command line.

    Args:
        argv: Arguments; None takes those of the process.

    Raises:
        ConfigError: For an unknown option or key (with the nearest names) or a value that cannot be meant.
    """
    parser = build_parser()
    for action in parser._actions:
        action.default = argparse.SUPPRESS
    parser._defaults.clear()
    known, unknown = parser.parse_known_args(argv)
    given = vars(known)
    if unknown:
        raise ConfigError(_unknown(unknown[0], parser))
    positional, config = given.pop(POSITIONAL, None), given.pop('config', None)
    if positional and given.get('data_dir') and positional != given['data_dir']:
        raise ConfigError(f'two data folders are given: {positional!r} and --data-dir {given["data_dir"]!r}')
    if positional:
        given['data_dir'] = positional
    values = (load_config(config) if config else {}) | given
    if not (values.get('dataset') or values.get('data_dir')):
        values = {'dataset': DIGITS, **DIGITS_DEFAULTS, **{k: v for k, v in values.items() if k != 'dataset'}}
    options = Options.from_flat(values)
    check_options(options)
    return settled(options)


def general_instead_of_digits(options: Options) -> str:
    """Options of the run without options, where the digits are given by name without epochs or imbalance ratio."""
    values = options.flat()
    general = [n for n in ('imbalance_ratio', 'epochs') if values[n] == OPTIONS[n].default]
    if options.data.dataset != DIGITS or not general:
        return ''
    return ' '.join(f'{OPTIONS[n].flag} {value}' for n, value in DIGITS_DEFAULTS.items())


def _unknown(argument: str, parser: argparse.ArgumentParser) -> str:
    name = argument.split('=')[0]
    if instead := refusal(name):
        return instead
    known = [o for a in parser._actions for o in a.option_strings]
    return f'unknown option {argument!r}. {nearest_names(name, known)}'

"""Options of the script as users may hold them; see :mod:`timm_lt.training.options`."""

from argparse import Namespace
from collections.abc import Sequence

from .errors import ConfigError, one_line
from .options import (
    DIGITS_DEFAULTS,
    NOTES,
    Options,
    build_parser,
    configuration,
    differing_keys,
    load_config,
    parse_options,
)
from .options import to_yaml as _to_yaml

METADATA = NOTES


def parse_args(argv: Sequence[str] | None = None) -> Namespace:
    """The resolved options by name, see :func:`timm_lt.training.options.parse_options`."""
    return Namespace(**parse_options(argv).flat())


def to_yaml(args: Namespace) -> str:
    """The resolved options, as ``--config`` reads them back."""
    return _to_yaml(Options.from_flat(vars(args)))


__all__ = [
    'DIGITS_DEFAULTS', 'METADATA', 'ConfigError', 'build_parser', 'configuration', 'differing_keys', 'load_config',
    'one_line', 'parse_args', 'to_yaml',
]

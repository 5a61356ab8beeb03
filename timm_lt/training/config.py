"""Options of the script under the names that users may hold; see :mod:`timm_lt.training.options`."""

from .._private_options import RECIPE_NOTES as METADATA
from .errors import ConfigError
from .options import build_parser, configuration, differing_keys, load_config, to_yaml
from .options import parse_options as parse_args

__all__ = [
    'METADATA', 'ConfigError', 'build_parser', 'configuration', 'differing_keys', 'load_config', 'parse_args',
    'to_yaml',
]

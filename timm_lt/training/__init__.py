"""The training script: options, data, model and loss from registries, stages, checkpoints, the run folder."""

from .errors import ConfigError
from .options import Options, build_parser, load_config
from .options import parse_options as parse_args
from .run import main, run
from .trainer import Callback, Trainer

__all__ = [
    'Callback', 'ConfigError', 'Options', 'Trainer', 'build_parser', 'load_config', 'main', 'parse_args', 'run',
]

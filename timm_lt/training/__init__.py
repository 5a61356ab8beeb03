"""The training script's parts: options, data, model and loss from registries, the loop, checkpoints, the run folder."""

from .config import ConfigError, build_parser, load_config, parse_args
from .run import main, run
from .trainer import Callback, Trainer

__all__ = ['Callback', 'ConfigError', 'Trainer', 'build_parser', 'load_config', 'main', 'parse_args', 'run']

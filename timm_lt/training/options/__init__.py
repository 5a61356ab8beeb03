"""Options of the training script: each is declared once, and parser, files, checks and table come from that.

A new option is one field of one group, in ``_data.py``, ``_model.py``, ``_learning.py`` or ``_run.py``.
"""

from ._command_line import DIGITS_DEFAULTS, build_parser, general_instead_of_digits, parse_options
from ._composed import GROUPS, OPTIONS, Options
from ._config_file import configuration, differing_keys, load_config, read_args, to_yaml
from ._data import AugmentationOptions, DataOptions
from ._finetune import FinetuneOptions
from ._learning import (
    GKPOptions,
    LossOptions,
    OptimizerOptions,
    PosthocOptions,
    ScheduleOptions,
    SecondStageOptions,
)
from ._model import ModelOptions
from ._names import check_names
from ._option import OptionInfo, option
from ._recipes import list_recipes, recipe_folder
from ._rules import RULES, check_options
from ._run import EvaluationOptions, HubOptions, RecipeNotes, RunOptions
from ._table import options_table
from ._timm_names import NOT_OFFERED

__all__ = [
    'DIGITS_DEFAULTS', 'GROUPS', 'NOT_OFFERED', 'OPTIONS', 'RULES', 'AugmentationOptions', 'DataOptions',
    'EvaluationOptions', 'FinetuneOptions', 'GKPOptions', 'HubOptions', 'LossOptions', 'ModelOptions',
    'OptimizerOptions', 'OptionInfo', 'Options', 'PosthocOptions', 'RecipeNotes', 'RunOptions', 'ScheduleOptions',
    'SecondStageOptions', 'build_parser', 'check_names', 'check_options', 'configuration', 'differing_keys',
    'general_instead_of_digits', 'list_recipes', 'load_config', 'option', 'options_table', 'parse_options', 'read_args',
    'recipe_folder', 'to_yaml',
]

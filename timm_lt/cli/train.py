"""``timm-lt train``: the command of :mod:`timm_lt.training`, with a short help of the most used options.

Several processes: ``accelerate launch -m timm_lt train ...``.
"""

import argparse
import dataclasses
import sys
from collections.abc import Sequence

from .. import training
from .._validate import nearest_names
from ..training.options import GROUPS, OPTIONS, Options

PROG = 'timm-lt train'
MOST_USED = (
    'data_dir', 'dataset', 'val_fraction', 'imbalance_ratio', 'sampler', 'workers', 'batch_size', 'model', 'pretrained',
    'cosine_classifier', 'finetune', 'loss', 'loss_kwargs', 'opt', 'opt_kwargs', 'lr', 'weight_decay', 'epochs',
    'sched', 'aa', 'mixup', 'posthoc', 'stage2', 'eval_metric', 'seed', 'amp', 'device', 'output', 'experiment',
    'resume', 'dry_run', 'push_to_hub')
GROUP_NAMES = {  # as typed after --help; in the order of the help
    field.name: group for field, group in zip(dataclasses.fields(Options), GROUPS)
    if not all(OPTIONS[option.name].file_only for option in dataclasses.fields(group))}


def build_parser() -> argparse.ArgumentParser:
    """The parser of all options."""
    return training.build_parser(PROG)


def main(argv: Sequence[str]) -> int:
    argv = list(argv)
    if '--help-all' in argv:
        return _show(build_parser())
    asked = next((i for i, word in enumerate(argv) if word in ('-h', '--help')), None)
    if asked is None:
        return training.main(argv, PROG)
    group = argv[asked + 1] if len(argv) > asked + 1 and not argv[asked + 1].startswith('-') else None
    if group is None:
        return _show(short_parser(MOST_USED))
    if group not in GROUP_NAMES:
        nearest = nearest_names(group, GROUP_NAMES)
        sys.stderr.write(f'{PROG}: error: unknown group of options {group!r}. {nearest}\n')
        return 2
    return _show(short_parser([option.name for option in dataclasses.fields(GROUP_NAMES[group])]))


def short_parser(names: Sequence[str]) -> argparse.ArgumentParser:
    """A parser of some options, for its help."""
    parser = training.build_parser(PROG, only=names)
    parser.formatter_class = _ShortHelp
    parser.usage = f'{PROG} [DIR] [--config FILE.yaml] [options]'
    parser.epilog = (
        f'More options: {PROG} --help GROUP, with GROUP one of {", ".join(GROUP_NAMES)}; all: {PROG} --help-all. '
        f'Several processes: accelerate launch -m timm_lt train ...')
    return parser


class _ShortHelp(argparse.ArgumentDefaultsHelpFormatter):
    """One line an option where it fits: defaults that say something, no negative flags, no line on each group."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=34)

    def _get_help_string(self, action: argparse.Action) -> str | None:
        says_nothing = action.default is None or action.default is False or action.default in ('', {})
        return action.help if says_nothing else super()._get_help_string(action)

    def _format_action_invocation(self, action: argparse.Action) -> str:
        if isinstance(action, argparse.BooleanOptionalAction):
            return ', '.join(flag for flag in action.option_strings if not flag.startswith('--no-'))
        return super()._format_action_invocation(action)

    def add_text(self, text: str | None) -> None:
        if self._current_section is self._root_section:  # a section's text is the line on its group
            super().add_text(text)


def _show(parser: argparse.ArgumentParser) -> int:
    parser.print_help()
    return 0

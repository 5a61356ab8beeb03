"""The table of commands, and the entry point that hands over to one of them."""

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from .._validate import nearest_names
from .._version import __version__

PROG = 'timm-lt'


@dataclass(frozen=True)
class Command:
    """One command.

    Attributes:
        name: As typed.
        help: One line.
        module: Module of this folder with ``main(argv) -> int`` and ``build_parser() -> ArgumentParser``.
    """
    name: str
    help: str
    module: str

    def load(self) -> Any:
        """The module."""
        return importlib.import_module(f'{__package__}.{self.module}')

    @property
    def main(self) -> Callable[[Sequence[str]], int]:
        return self.load().main

    @property
    def build_parser(self) -> Callable[[], argparse.ArgumentParser]:
        return self.load().build_parser


COMMANDS = (
    Command('train', 'train and evaluate a network', 'train'),
    Command('evaluate', 'report of a run, a checkpoint or a file of predictions', 'evaluate'),
    Command('compare', 'compare runs; the first is the baseline', 'compare'),
    Command('predict', 'label images: file, folder, list or data set', 'predict'),
    Command('export', 'network, correction and class names as ONNX, torch.export or TorchScript', 'export'),
    Command('hub', 'upload, download and list checkpoints', 'hub'),
    Command('list', 'names of losses, samplers, optimizers, recipes, ...', 'listing'),
    Command('completion', 'completion script of a shell', 'completion'),
)


def build_parser() -> argparse.ArgumentParser:
    """The parser of the first word."""
    width = max(len(command.name) for command in COMMANDS)
    table = '\n'.join(f'  {command.name:{width}}  {command.help}' for command in COMMANDS)
    parser = argparse.ArgumentParser(
        prog=PROG, formatter_class=argparse.RawDescriptionHelpFormatter, usage=f'{PROG} COMMAND [options]',
        description=f'Long-tailed recognition with timm.\n\ncommands:\n{table}',
        epilog=f'Options of a command: {PROG} COMMAND --help. The same without the script: python -m timm_lt COMMAND.')
    parser.add_argument('--version', action='version', version=f'{PROG} {__version__}')
    parser.add_argument('command', nargs='?', help=argparse.SUPPRESS)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command.

    Args:
        argv: The command and its options; None reads those of the process.

    Returns:
        The exit status of the command; 0 for help, 2 for an unknown command, 130 if interrupted.
    """
    argv = list(sys.argv[1:] if argv is None else argv)
    parser = build_parser()
    name = parser.parse_args(argv[:1]).command
    if name is None:
        parser.print_help()
        return 0
    command = next((c for c in COMMANDS if c.name == name), None)
    if command is None:
        nearest = nearest_names(name, [c.name for c in COMMANDS])
        sys.stderr.write(f'{PROG}: error: unknown command {name!r}. {nearest}\n')
        return 2
    try:
        return command.main(argv[1:])
    except KeyboardInterrupt:
        sys.stderr.write(f'{PROG} {name}: interrupted\n')
        return 130
    except BrokenPipeError:  # the reader of the output has seen enough, as `head` has
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains at its end
        return 141

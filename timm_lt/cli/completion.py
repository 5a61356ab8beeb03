"""``timm-lt completion``: a script that completes commands and options in a shell.

The script is static and made by shtab, because argcomplete would start Python and import torch at each key press.
"""

import argparse
import sys
from collections.abc import Sequence

from .commands import COMMANDS, PROG

SHELLS = ('bash', 'zsh', 'tcsh')


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=f'{PROG} completion', description='Print a completion script.',
        epilog=f'bash: {PROG} completion bash > ~/.local/share/bash-completion/completions/{PROG}; '
               f'zsh: {PROG} completion zsh > a folder of $fpath, as _{PROG}')
    parser.add_argument('shell', choices=SHELLS)
    return parser


def main(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    try:
        import shtab
    except ImportError:
        sys.stderr.write(
            f"{PROG} completion: error: shtab is missing; install it by pip install 'timm-lt[completion]'\n")
        return 2
    sys.stdout.write(shtab.complete(whole_parser(), args.shell) + '\n')
    return 0


def whole_parser() -> argparse.ArgumentParser:
    """One parser of all commands and their options."""
    parser = argparse.ArgumentParser(prog=PROG)
    parser.add_argument('--version', action='store_true')
    commands = parser.add_subparsers(dest='command')
    for command in COMMANDS:
        own = command.build_parser()
        commands.add_parser(
            command.name, help=command.help, parents=[own], add_help=False, conflict_handler='resolve',
            allow_abbrev=False)
    return parser

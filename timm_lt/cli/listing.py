"""``timm-lt list``: names of methods, recipes and checkpoints."""

import argparse
import importlib
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from fnmatch import fnmatch
from functools import partial

from .. import _registry

Rows = Iterable[tuple[str, str]]
MARKUP = re.compile(r'(?::\w+:)?`+~?([^`]*)`+')  # of docstrings


def _methods(registry: str, room: str) -> Rows:
    """Names and descriptions of a registry, which the import of its room fills."""
    importlib.import_module(f'timm_lt.{room}')
    for info in getattr(_registry, registry).infos():
        yield info.name, info.description + (f' ({info.paper})' if info.paper else '')


def _recipes() -> Rows:
    from ..training.options import list_recipes, recipe_folder
    for name in list_recipes():
        first = (recipe_folder() / f'{name}.yaml').read_text(encoding='utf-8').partition('\n')[0]
        yield name, first.removeprefix('#').strip() if first.startswith('#') else ''


def _checkpoints() -> Rows:
    from ..hub import load, shipped
    return ((name, repr(load(name))) for name in shipped())


def _networks() -> Rows:
    import timm

    from .._timm_hooks import list_networks
    for name in list_networks():
        yield name, (timm.model_entrypoint(name).__doc__ or '').partition('\n')[0]


KINDS: dict[str, Callable[[], Rows]] = {
    'losses': partial(_methods, 'LOSSES', 'losses'),
    'samplers': partial(_methods, 'SAMPLERS', 'samplers'),
    'optimizers': partial(_methods, 'OPTIMIZERS', 'optim'),
    'mixings': partial(_methods, 'MIXINGS', 'data'),
    'finetuning': partial(_methods, 'FINETUNING', 'finetune'),
    'second-stages': partial(_methods, 'SECOND_STAGES', 'two_stage'),
    'posthoc': partial(_methods, 'POSTHOC', 'posthoc'),
    'readers': partial(_methods, 'READERS', 'data'),
    'networks': _networks,
    'recipes': _recipes,
    'checkpoints': _checkpoints,
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog='timm-lt list', description='Names that options take, with a line on each. timm has more losses, '
        'optimizers and networks, and `timm-lt hub list` shows checkpoints on the Hub.')
    parser.add_argument('kind', choices=list(KINDS), metavar='KIND', help=', '.join(KINDS))
    parser.add_argument('filter', nargs='?', default='*', help="names that match, e.g. 'cifar10_lt-*'")
    parser.add_argument('-q', '--quiet', action='store_true', help='names alone')
    return parser


def main(argv: Sequence[str]) -> int:
    args = build_parser().parse_args(argv)
    rows = [(name, MARKUP.sub(r'\1', text)) for name, text in KINDS[args.kind]() if fnmatch(name, args.filter)]
    width = max((len(name) for name, _ in rows), default=0)
    sys.stdout.write(''.join(f'{name}\n' if args.quiet else f'{name:{width}}  {text}'.rstrip() + '\n'
                             for name, text in rows))
    return 0

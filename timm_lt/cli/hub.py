"""``timm-lt hub``: the command of :mod:`timm_lt.hub`."""

import argparse
from collections.abc import Sequence

from ..hub import __main__ as hub

PROG = 'timm-lt hub'


def build_parser() -> argparse.ArgumentParser:
    return hub.build_parser(PROG)


def main(argv: Sequence[str]) -> int:
    return hub.main(argv, PROG)

"""``timm-lt evaluate``: the command of :mod:`timm_lt.evaluate`."""

import argparse
from collections.abc import Sequence

from ..evaluate import cli

PROG = 'timm-lt evaluate'


def build_parser() -> argparse.ArgumentParser:
    return cli.build_parser(PROG)


def main(argv: Sequence[str]) -> int:
    return cli.main(argv, PROG)

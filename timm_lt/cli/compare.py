"""``timm-lt compare``: the comparison of :mod:`timm_lt.evaluate`."""

import argparse
from collections.abc import Sequence

from ..evaluate import cli


def build_parser() -> argparse.ArgumentParser:
    return cli.build_compare_parser('timm-lt compare')


def main(argv: Sequence[str]) -> int:
    return cli.main(['compare', *argv], 'timm-lt')

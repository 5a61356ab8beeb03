"""Names of classes and files: one total order, one printable form."""

import re
from collections.abc import Iterable

_DIGITS = re.compile(r'(\d+)')
_SURROGATES = re.compile('[\ud800-\udfff]')  # Python's form of bytes in file names that are not UTF-8


def natural_key(name: str) -> list[str | int]:
    """Sort key of timm's natural order ('2' before '10', case ignored); names that tie there go by their characters.

    timm leaves names that tie ('1' and '01', 'a' and 'A') in the order of a set. That order differs between processes.
    """
    pieces: list[str | int] = _DIGITS.split(name.lower())
    pieces[1::2] = map(int, pieces[1::2])
    pieces += (-1, name)  # after a name's own pieces, before any number that a longer name has there
    return pieces


def sort_names(names: Iterable[str]) -> list[str]:
    """Class names in label order: natural, total, the same in every process."""
    return sorted(set(names), key=natural_key)


def printable(name: str) -> str:
    r"""A name that any file and terminal takes: bytes that are not UTF-8 become ``\xNN``."""
    return _SURROGATES.sub(_escape, name)


def _escape(match: re.Match) -> str:
    code = ord(match[0])
    return f'\\x{code - 0xdc00:02x}' if 0xdc80 <= code <= 0xdcff else f'\\u{code:04x}'

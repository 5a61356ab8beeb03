"""Names of users as text that every file, font and terminal can show."""

import re

# control characters, and the lone surrogates that Python makes of file names that are not UTF-8
UNPRINTABLE = re.compile('[\x00-\x1f\x7f-\x9f\ud800-\udfff]')


def printable(name: object) -> str:
    """``str(name)`` with U+FFFD for each character that has no printed form and no UTF-8 code."""
    return UNPRINTABLE.sub('\ufffd', str(name))


def counted(number: int, noun: str, plural: str | None = None) -> str:
    """A number with its noun, e.g. '1 epoch', '20 epochs'; ``plural`` where the noun takes more than an s."""
    return f'{number:,} {noun if number == 1 else plural or noun + "s"}'

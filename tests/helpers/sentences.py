"""Sentences of docstrings, and their number of words."""

import inspect
import re
from collections.abc import Iterator

_ENTRIES = ('Args', 'Attributes', 'Raises')
_HEADING = re.compile(r'(Args|Attributes|Returns|Raises|Examples):')
_LABEL = re.compile(r'(Paper|Papers|Implements|Source|Differs[^:]*): ')
_ENTRY = re.compile(r'\*{0,2}\w+(, \*{0,2}\w+)*: ')
_NO_PROSE = re.compile(r'>>>|\.\.\.|\||===|\.\. |```|``\S+`` {2}')
_LITERAL = re.compile(r'``[^`]*``|:\w+:`[^`]*`|`[^`]*`|https?://\S+')
_ABBREVIATION = re.compile(r'\b(e\.g|i\.e|et al|cf|vs|Eqs?|Sec|Fig)\.')


def sentences(docstring: str) -> Iterator[str]:
    """Sentences of the prose of a docstring; a literal is one word, citations, tables and examples are left out."""
    for paragraph in _paragraphs(docstring):
        text = _ABBREVIATION.sub(r'\1', _LITERAL.sub('literal', paragraph))
        yield from re.split(r'(?<=[.!?])\s+', text)


def number_of_words(sentence: str) -> int:
    return len(re.findall(r"[^\W_][\w'.-]*", sentence))


def _paragraphs(docstring: str) -> Iterator[str]:
    section, lines = '', []
    for line in [*inspect.cleandoc(docstring).splitlines(), '']:
        text = line.strip()
        heading = _HEADING.fullmatch(text)
        label = _LABEL.match(text)
        entry = section in _ENTRIES and line.startswith('    ') and not line.startswith('     ')
        item = re.match(r'[-*] |\d+\. ', text)
        if not text or heading or label or entry or item or _NO_PROSE.match(text):
            if lines and section not in ('Examples', 'Paper', 'Papers'):
                yield ' '.join(lines)
            lines = []
        if heading:
            section = heading[1]
        elif label:
            section = label[1]
            lines = [text[label.end():]]
        elif text and not _NO_PROSE.match(text):
            lines.append(_ENTRY.sub('', text, count=1) if entry else text[item.end():] if item else text)

"""The table of all options, for the documentation."""

import dataclasses

from ._composed import GROUPS, OPTIONS
from ._option import OptionInfo


def options_table() -> str:
    """All options as Markdown: a section for each group, a row for each option."""
    sections = []
    for group in GROUPS:
        rows = ['| option | default | values | meaning |', '| --- | --- | --- | --- |']
        rows += [_row(OPTIONS[f.name]) for f in dataclasses.fields(group)]
        sections.append(f'## {group.title[0].upper()}{group.title[1:]}\n\n{group.__doc__}\n\n' + '\n'.join(rows) + '\n')
    return '\n'.join(sections)


def _row(info: OptionInfo) -> str:
    names = f'`{info.name}:` in a file' if info.file_only else ', '.join(f'`{n}`' for n in (info.flag, *info.flags))
    cells = (names, _default(info), _values(info), info.help)
    return '| ' + ' | '.join(' '.join(cell.split()).replace('|', '\\|') for cell in cells) + ' |'


def _default(info: OptionInfo) -> str:
    if info.default is None or info.default == {} or info.default == '':
        return ''
    if isinstance(info.default, list):
        return f'`{" ".join(map(str, info.default))}`'
    return f'`{str(info.default).lower() if info.type is bool else info.default}`'


def _values(info: OptionInfo) -> str:
    if info.type is bool:
        return 'flag'
    if info.type is dict:
        return 'key=value ...'
    if info.choices is not None:
        return ', '.join(f'`{c}`' if c else 'empty' for c in info.choices)
    number = {'int': 'whole number', 'float': 'number', 'str': 'text'}[info.type.__name__]
    if info.within is not None:
        number += f' {info.within}'
    if info.many:
        count = '1 or more' if info.nargs == '+' else '0 or more' if info.nargs == '*' else str(info.nargs)
        number += f', {count} values'
    return number

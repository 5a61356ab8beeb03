#!/usr/bin/env python3
"""Fills the generated parts of the documentation: figures from ``benchmarks/results``, options from their declaration.

A part lies between ``<!-- generated: KIND ARGUMENTS -->`` and ``<!-- end -->``. Run ``python docs/generate.py`` after a
change of options or results; a test compares.

Kinds:
    accuracy FOLDER: ROW; ROW    rows of a results table, after its baseline; without rows the whole table
    cost FOLDER KIND: STEP       rows of the cost tables of a kind (optimizers, losses), a column for each network
    options                      the table of options of ``train_lt.py``
    table FILE                   the table of a results file
    checkpoints                  the checkpoints that come with the package
"""

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / 'benchmarks' / 'results'
NO_BREAK = '\N{NO-BREAK SPACE}'
PART = re.compile(r'(<!-- generated: (\w+) ?([^>]*?) -->\n).*?(<!-- end -->)', re.DOTALL)


def rows_of(text: str) -> list[list[str]]:
    """Cells of the lines of a Markdown table."""
    lines = [line for line in text.splitlines() if line.startswith('|') and not line.startswith('| ---')]
    return [[cell.strip() for cell in line.strip('|').split('|')] for line in lines]


def markdown_table(header: list[str], rows: list[list[str]]) -> str:
    lines = [header, ['---'] * len(header), *rows]
    return '\n'.join('| ' + ' | '.join(line) + ' |' for line in lines) + '\n'


def wanted_rows(arguments: str) -> tuple[str, list[str]]:
    name, _, rows = arguments.partition(':')
    return name.strip(), [row.strip() for row in rows.split(';') if row.strip()]


def accuracy(arguments: str) -> str:
    """Rows of a results table, without what papers state for other recipes."""
    folder, wanted = wanted_rows(arguments)
    header, baseline, *rows = rows_of((RESULTS / folder / 'results.md').read_text())
    found = [row for row in rows if not wanted or row[0].strip('`') in wanted]
    missing = set(wanted) - {row[0].strip('`') for row in found}
    if missing:
        raise ValueError(f'{folder} has no row {sorted(missing)}')
    columns = [header.index(name) for name in header if name != 'seeds' and not name.startswith('published')]
    return markdown_table(
        [header[i] for i in columns], [[unbroken(row[i]) for i in columns] for row in [baseline, *found]])


def unbroken(cell: str) -> str:
    """A figure with its deviation or interval in one line: spaces that do not break."""
    return re.sub(r' (?=±)|(?<=±) |(?<=,) (?=[+-])', NO_BREAK, cell)


def cost(arguments: str) -> str:
    """Times of steps as multiples of the first row of their table, a column for each network of one kind of table."""
    source, wanted = wanted_rows(arguments)
    folder, kind = source.split(' ', 1)
    text = (RESULTS / folder / 'cost.md').read_text()
    tables = {}
    for heading, table in re.findall(rf'^\*\*{kind}\*\*: ([^\n]+)\n\n((?:\|.*\n)+)', text, re.MULTILINE):
        times = {row[0]: row[1] for row in rows_of(table)[1:]}
        if not wanted or set(wanted) & set(times):
            tables[heading.replace(', C=100', '')] = times
    steps = wanted or list(dict.fromkeys(step for times in tables.values() for step in times))
    rows = [[step, *(format_ratio(times.get(step)) for times in tables.values())] for step in steps]
    if not any(cell for row in rows for cell in row[1:]):
        raise ValueError(f'{folder} has no {kind} {wanted}')
    return markdown_table(['step', *tables], rows)


def format_ratio(number: str | None) -> str:
    return '' if number is None else f'{float(number):.2f}'


def options(_: str) -> str:
    """The table of options; needs the package."""
    sys.path.insert(0, str(ROOT))
    from timm_lt.training.options import options_table
    return '\n' + options_table() + '\n'


def checkpoints(_: str) -> str:
    """A row for each checkpoint of the package, from its own files."""
    rows = []
    for folder in sorted((ROOT / 'timm_lt' / 'hub' / 'checkpoints').iterdir()):
        metrics = json.loads((folder / 'metrics.json').read_text())
        interval = (metrics['confidence'] or {}).get('top1')
        top1 = f'{metrics["top1"]:.1f}' + (f' [{interval[0]:.1f}, {interval[1]:.1f}]' if interval else '')
        by_size = [f'{metrics[name]:.1f}' for name in ('many', 'medium', 'few')]
        ratio = f'{metrics["dataset"].rsplit("/", 1)[-1]}, r = {metrics["imbalance_ratio"]:g}'
        recipe = (ROOT / 'hub_configs' / f'{folder.name}.yaml').is_file()
        command = f'`timm-lt train --config {folder.name}`' if recipe else '`timm-lt train`'
        rows.append([
            f'`{folder.name}`', f'`{metrics["model"]}` on {ratio}', top1, *by_size, str(metrics['cost']), command])
    return markdown_table(
        ['checkpoint', 'network and data', 'top-1 [95%]', 'many', 'medium', 'few', 'cost', 'command'], rows)


def table(file: str) -> str:
    """The lines of a results file that form its table."""
    return '\n'.join(line for line in (RESULTS / file).read_text().splitlines() if line.startswith('|')) + '\n'


KINDS = {'checkpoints': checkpoints, 'accuracy': accuracy, 'cost': cost, 'options': options, 'table': table}


def filled(text: str) -> str:
    """A page with its generated parts made new."""
    return PART.sub(lambda found: found[1] + KINDS[found[2]](found[3]) + found[4], text)


def main() -> None:
    for path in [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]:
        text = path.read_text()
        new = filled(text)
        if new != text:
            path.write_text(new)


if __name__ == '__main__':
    main()

"""Rows of image lists: text files of ``path label`` lines, CSV, TSV and Parquet tables."""

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .names import printable

TABLES = ('.csv', '.tsv', '.parquet')
DELIMITERS = (',', ';', '\t')
PATH_COLUMNS = (
    'path', 'file', 'filename', 'file_name', 'filepath', 'file_path', 'image', 'image_path', 'image_file', 'img',
    'img_path', 'image_name')
LABEL_COLUMNS = ('label', 'labels', 'class', 'class_name', 'category', 'target', 'class_id', 'category_id')
SPLIT_COLUMNS = ('split', 'subset', 'partition')
_NUMBER = re.compile(r'-?\d+(\.0*)?')
_FILE_TYPE = re.compile(r'\.\w{2,5}$')


@dataclass
class Rows:
    """Rows of a list, as read.

    Attributes:
        paths: Path of each image; None where the cell is empty.
        labels: Label of each image, a number or a name; None where the cell is empty.
        places: Line (text, CSV) or row from 0 (Parquet), for messages.
        splits: Part of each image, or None where the list has no such column.
    """
    paths: list[str | None]
    labels: list[int | str | None]
    places: list[str]
    splits: list[str] | None = None

    def choose(self, keep: Sequence[bool]) -> 'Rows':
        """The rows that are marked."""
        def chosen(column: list) -> list:
            return [value for value, k in zip(column, keep) if k]

        splits = None if self.splits is None else chosen(self.splits)
        return Rows(chosen(self.paths), chosen(self.labels), chosen(self.places), splits)


def read_rows(file: Path, input_key: str | None = None, target_key: str | None = None) -> Rows:
    """Read a list of images.

    Args:
        file: A table (``.csv``, ``.tsv``, ``.parquet``) whose columns have their usual names, or a text file of
            ``relative/path label`` lines. A CSV or TSV table of two columns needs no header.
        input_key: Column of the paths; None: found by its name, see :data:`PATH_COLUMNS`.
        target_key: Column of the labels; None: found by its name, see :data:`LABEL_COLUMNS`.

    Raises:
        ValueError: If a line has no path and label, or the columns are not clear.
    """
    suffix = file.suffix.lower()
    if suffix == '.parquet':
        return _read_parquet(file, input_key, target_key)
    # paths whose bytes are not UTF-8 keep them
    with open(file, encoding='utf-8-sig', errors='surrogateescape', newline='' if suffix in TABLES else None) as f:
        if suffix not in TABLES:
            return _read_text(file, f)
        reader = _cells(f, suffix)
        lines = [(str(reader.line_num), cells) for cells in reader if any(cell.strip() for cell in cells)]
    return _read_table(file, lines, input_key, target_key)


def read_paths(file: Path, input_key: str | None = None) -> Iterator[str | None]:
    """Paths of a list of images one by one, None for an empty cell. Labels are not needed and not read.

    Args:
        file: As for :func:`read_rows`. A text file holds a path, or a path and a whole number, on each line. A CSV or
            TSV table without header has the path in its first column.
        input_key: As for :func:`read_rows`.

    Raises:
        ValueError: If the column of the paths is not clear.
    """
    suffix = file.suffix.lower()
    if suffix == '.parquet':
        from pyarrow import parquet
        table = parquet.ParquetFile(file)
        column = _find_column(file, table.schema_arrow.names, 'paths', PATH_COLUMNS, input_key, 'input_key')
        _check_holds_paths(file, table.schema_arrow, column)
        for batch in table.iter_batches(columns=[column]):
            yield from (str(value).strip() or None if value is not None else None for value in batch[0].to_pylist())
        return
    with open(file, encoding='utf-8-sig', errors='surrogateescape', newline='' if suffix in TABLES else None) as f:
        if suffix not in TABLES:
            for line in filter(str.strip, f):
                words = line.strip().rsplit(None, 1)
                yield words[0] if len(words) == 2 and _NUMBER.fullmatch(words[1]) else line.strip()
            return
        rows = (cells for cells in _cells(f, suffix) if any(cell.strip() for cell in cells))
        first = [cell.strip() for cell in next(rows, [])]
        at = 0
        if input_key or not _FILE_TYPE.search(first[0] if first else '.png'):
            at = first.index(_find_column(file, first, 'paths', PATH_COLUMNS, input_key, 'input_key'))
        elif first:
            yield first[0]
        yield from (cells[at].strip() or None if len(cells) > at else None for cells in rows)


def _cells(file: Any, suffix: str) -> Any:
    """csv's reader of an open table, with the delimiter that its first line has most."""
    first = file.readline()
    file.seek(0)
    delimiter = '\t' if suffix == '.tsv' else max(DELIMITERS, key=first.count)
    return csv.reader(file, delimiter=delimiter, skipinitialspace=True)


def _read_text(file: Path, lines: Any) -> Rows:
    rows = Rows([], [], [])
    for number, line in enumerate(lines, start=1):
        if line.strip():
            words = line.strip().rsplit(None, 1)
            if len(words) < 2:
                raise ValueError(
                    f'{file}, line {number}: expected `relative/path label`, got {printable(line.strip())!r}')
            rows.paths.append(words[0])
            rows.labels.append(as_number(words[1]))
            rows.places.append(f'line {number}')
    return rows


def _read_table(
        file: Path, lines: list[tuple[str, list[str]]], input_key: str | None, target_key: str | None) -> Rows:
    if not lines:
        return Rows([], [], [])
    header = [cell.strip() for cell in lines[0][1]]
    path, label, split = 0, 1, None
    if input_key or target_key or not _is_row_of_two(header):
        names = _columns(file, header, input_key, target_key)
        path, label = header.index(names[0]), header.index(names[1])
        split = None if names[2] is None else header.index(names[2])
        lines = lines[1:]
    short = next((number for number, cells in lines if len(cells) <= max(path, label, split or 0)), None)
    if short is not None:
        raise ValueError(f'{file}, line {short}: expected {len(header)} cells like the first line')
    return Rows(
        [cells[path].strip() or None for _, cells in lines],
        [as_number(cells[label].strip()) for _, cells in lines],
        [f'line {number}' for number, _ in lines],
        None if split is None else [cells[split].strip() for _, cells in lines])


def _is_row_of_two(cells: list[str]) -> bool:
    """Whether a first line is a path and a label already, in a table without header."""
    known = {*PATH_COLUMNS, *LABEL_COLUMNS}
    return len(cells) == 2 and bool(_FILE_TYPE.search(cells[0])) and not known & {c.lower() for c in cells}


def _read_parquet(file: Path, input_key: str | None, target_key: str | None) -> Rows:
    from pyarrow import parquet  # comes with datasets; half a second to import
    schema = parquet.read_schema(file)
    path, label, split = _columns(file, schema.names, input_key, target_key)
    _check_holds_paths(file, schema, path)
    table = parquet.read_table(file, columns=[path, label] + ([split] if split else []))
    paths, labels = table[path].to_pylist(), table[label].to_pylist()
    return Rows(
        [None if value is None else str(value).strip() or None for value in paths],
        [_typed(value) for value in labels],
        [f'row {i}' for i in range(len(paths))],
        None if split is None else [str(value) for value in table[split].to_pylist()])


def _check_holds_paths(file: Path, schema: Any, column: str) -> None:
    if str(schema.field(column).type).startswith(('struct', 'binary')):
        raise ValueError(
            f'{file} holds the images themselves in column {column!r}: read its folder as a Hugging Face dataset, '
            f"'hfds/{file.parent}'")


def _columns(
        file: Path,
        header: Sequence[str],
        input_key: str | None,
        target_key: str | None,
) -> tuple[str, str, str | None]:
    """Names of the columns of paths, labels and (or None) parts."""
    path = _find_column(file, header, 'paths', PATH_COLUMNS, input_key, 'input_key')
    label = _find_column(file, header, 'labels', LABEL_COLUMNS, target_key, 'target_key')
    splits = [name for name in header if name.lower() in SPLIT_COLUMNS and name not in (path, label)]
    return path, label, splits[0] if len(splits) == 1 else None


def _find_column(
        file: Path, header: Sequence[str], kind: str, usual: Sequence[str], key: str | None, option: str) -> str:
    """The column ``key``, else the one with a usual name."""
    if len(set(header)) < len(header):
        raise ValueError(f'{file} has two columns of one name: {list(header)}')
    known = [name for name in header if name == key] if key else [n for n in header if n.lower() in usual]
    if len(known) == 1:
        return known[0]
    which = f'no column {key!r}' if key else f'the columns {known}' if known else f'no usual column of {kind}'
    hint = f'; name the column of {kind} by {option} (--{option.replace("_", "-")})'
    raise ValueError(f'{file} has {which}, of {list(header)}{hint}')


def as_number(text: str) -> int | str | None:
    """A cell of a text file as a whole number ('3', or pandas's '3.0'), a name, or None where empty."""
    if not text:
        return None
    return int(text.split('.')[0]) if _NUMBER.fullmatch(text) else text


def _typed(value: Any) -> int | str | None:
    """A cell of a typed table; text stays a name, also '3'."""
    if value is None or value != value:  # NaN
        return None
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value if isinstance(value, int) and not isinstance(value, bool) else str(value).strip() or None

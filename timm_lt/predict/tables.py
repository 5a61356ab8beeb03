"""Tables of predictions: CSV, Parquet and JSONL, each written in parts that are joined at the end."""

import csv
import json
import shutil
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TextIO

from .._files import whole_file
from ..data.names import printable
from .network import Prediction

__all__ = ['FORMATS', 'Table', 'table_for']


class Table(ABC):
    """A kind of file.

    Args:
        top_k: Classes that each row names.
    """

    def __init__(self, top_k: int) -> None:
        self.columns = ['path', 'label', *(
            f'{kind}_{k}' for k in range(1, top_k + 1) for kind in ('label', 'probability')), 'error']
        self.top_k = top_k

    def row(self, prediction: Prediction) -> list[Any]:
        """The cells of a prediction, None where there is no value."""
        pairs: list[Any] = [
            cell for pair in zip(prediction.labels, prediction.probabilities) for cell in pair]
        pairs += [None] * (2 * self.top_k - len(pairs))
        return [printable(prediction.path), prediction.label or None, *pairs, prediction.error or None]

    @abstractmethod
    def write(self, file: Path, predictions: Iterable[Prediction]) -> None:
        """Write a part."""

    @abstractmethod
    def join(self, parts: Sequence[Path], file: Path) -> None:
        """Write the whole table from its parts."""


class CSVTable(Table):
    """Comma-separated values with a header; probabilities with 6 digits."""

    def write(self, file: Path, predictions: Iterable[Prediction]) -> None:
        with open(file, 'w', encoding='utf-8', newline='') as f:
            self.stream(f, predictions)

    def stream(self, file: TextIO, predictions: Iterable[Prediction]) -> None:
        """Write rows without a header."""
        writer = csv.writer(file, lineterminator='\n')
        for prediction in predictions:
            writer.writerow([f'{c:.6f}' if isinstance(c, float) else c for c in self.row(prediction)])

    @property
    def header(self) -> str:
        return ','.join(self.columns) + '\n'

    def join(self, parts: Sequence[Path], file: Path) -> None:
        with open(file, 'wb') as whole:
            whole.write(self.header.encode())
            _append(parts, whole)


class JSONLTable(Table):
    """An object a line: ``path``, ``label``, ``top`` (a list of ``label`` and ``probability``) and ``error``."""

    def write(self, file: Path, predictions: Iterable[Prediction]) -> None:
        with open(file, 'w', encoding='utf-8') as f:
            for p in predictions:
                top = [{'label': n, 'probability': round(v, 6)} for n, v in zip(p.labels, p.probabilities)]
                row = {'path': printable(p.path), 'label': p.label or None, 'top': top, 'error': p.error or None}
                f.write(json.dumps(row, ensure_ascii=False) + '\n')

    def join(self, parts: Sequence[Path], file: Path) -> None:
        with open(file, 'wb') as whole:
            _append(parts, whole)


class ParquetTable(Table):
    """A Parquet table; probabilities are float32, what is missing is null."""

    def write(self, file: Path, predictions: Iterable[Prediction]) -> None:
        import pyarrow as pa  # comes with datasets; half a second to import
        from pyarrow import parquet
        rows = [self.row(prediction) for prediction in predictions]
        kinds = [pa.float32() if name.startswith('probability_') else pa.string() for name in self.columns]
        cells = zip(*rows) if rows else [()] * len(kinds)
        arrays = [pa.array(column, kind) for column, kind in zip(cells, kinds)]
        parquet.write_table(pa.table(arrays, self.columns), file)

    def join(self, parts: Sequence[Path], file: Path) -> None:
        from pyarrow import parquet
        with parquet.ParquetWriter(file, parquet.read_schema(parts[0])) as whole:
            for part in parts:
                whole.write_table(parquet.read_table(part))


FORMATS: dict[str, type[Table]] = {'.csv': CSVTable, '.parquet': ParquetTable, '.jsonl': JSONLTable}


def table_for(file: Path, top_k: int) -> Table:
    """The kind of table that a file name asks for.

    Raises:
        ValueError: If its ending is none of :data:`FORMATS`.
    """
    if file.suffix.lower() not in FORMATS:
        raise ValueError(f'the output must end in {", ".join(FORMATS)}, got {str(file)!r}')
    return FORMATS[file.suffix.lower()](top_k)


def join_whole(table: Table, parts: Sequence[Path], file: Path) -> None:
    """Write the joined table whole or not at all."""
    with whole_file(file) as temporary:
        table.join(parts, temporary)


def _append(parts: Sequence[Path], whole: Any) -> None:
    for part in parts:
        with open(part, 'rb') as f:
            shutil.copyfileobj(f, whole, 1 << 20)

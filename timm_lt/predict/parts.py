"""The finished parts of a table, from which an interrupted run goes on."""

import hashlib
import json
import shutil
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from .._files import whole_file, write_text
from .network import Prediction
from .sources import ImageSource
from .tables import Table, join_whole

__all__ = ['Parts']

ROWS = 10_000  # of a part


class Parts:
    """The folder ``OUTPUT.parts``: finished parts, and ``state.json`` with what they were made from.

    Args:
        output: The file that the parts are joined to.
        table: Its kind.
        identity: Values that must be the same for a run that goes on.

    Attributes:
        rows: Rows of the finished parts.

    Raises:
        ValueError: If the parts are of another checkpoint, source or option.
    """

    def __init__(self, output: Path, table: Table, identity: dict[str, Any]) -> None:
        self.output, self.table = output, table
        self.identity = json.loads(json.dumps(identity))  # tuples become lists, as in the file
        self.folder = output.with_name(output.name + '.parts')
        self.finished: list[dict[str, Any]] = []
        if self._state.is_file():
            self._read()

    @property
    def _state(self) -> Path:
        return self.folder / 'state.json'

    def _read(self) -> None:
        try:
            state = json.loads(self._state.read_text(encoding='utf-8'))
            known, self.finished = state['identity'], state['parts']
        except (ValueError, KeyError, TypeError) as e:
            raise ValueError(f'{self._state} is damaged ({e!r}); remove {self.folder} to start again') from e
        differing = sorted(k for k in known.keys() | self.identity.keys() if known.get(k) != self.identity.get(k))
        if differing:
            raise ValueError(
                f'{self.folder} holds unfinished predictions with another {", ".join(differing)}; give the same as '
                f'before to go on, remove the folder to start again, or name another output')

    @property
    def rows(self) -> int:
        return sum(part['rows'] for part in self.finished)

    def check(self, source: ImageSource) -> None:
        """Raise a ValueError unless the source begins with the images of the finished parts."""
        names = (name for name, _ in source.entries())
        for number, part in enumerate(self.finished):
            if _digest(islice(names, part['rows'])) != part['names']:
                raise ValueError(
                    f'the images are not those of the unfinished predictions in {self.folder} (part {number} '
                    f'differs): files were added, removed or renamed; remove the folder to start again')

    def add(self, predictions: Sequence[Prediction]) -> None:
        """Write the next part, whole or not at all."""
        with whole_file(self._part(len(self.finished))) as temporary:
            self.table.write(temporary, predictions)
        self.finished.append({'rows': len(predictions), 'names': _digest(p.path for p in predictions)})
        write_text(self._state, json.dumps({'identity': self.identity, 'parts': self.finished}, indent=1) + '\n')

    def join(self) -> None:
        """Write the output from the parts, then remove them."""
        join_whole(self.table, [self._part(i) for i in range(len(self.finished))], self.output)
        shutil.rmtree(self.folder)

    def _part(self, number: int) -> Path:
        return self.folder / f'part-{number:06d}{self.output.suffix}'


def _digest(names: Iterable[str]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in names:
        digest.update(name.encode('utf-8', 'surrogateescape') + b'\0')
    return digest.hexdigest()

"""A memory of image files that were read without an error, in the user's cache folder."""

import hashlib
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from .._files import whole_file

SIZE = 8  # bytes of the digest of a file


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/timm_lt/checked_images``, by default below ``~/.cache``."""
    return Path(os.environ.get('XDG_CACHE_HOME') or Path.home() / '.cache') / 'timm_lt' / 'checked_images'


class CheckedFiles:
    """The files of a dataset, and those that were readable at their present size and time of change.

    The memory is one file for each folder that holds all files of a dataset. A folder that cannot be written to, or a
    damaged memory, means that files are read again.

    Args:
        paths: Path of each image; a name that is no file is never remembered.
    """

    def __init__(self, paths: Sequence[str]) -> None:
        paths = [os.path.abspath(path) for path in paths]
        self.digests = [_digest(path) for path in paths]
        files = [path for path, digest in zip(paths, self.digests) if digest]
        self.memory = cache_folder() / _hash(os.path.commonpath(files), 16).hex() if files else None
        self._known = self._read()

    def unknown(self) -> list[int]:
        """Indices of the images that must be read."""
        return [i for i, digest in enumerate(self.digests) if digest not in self._known]

    def remember(self, readable: Iterable[int]) -> None:
        """Add images to the memory, which keeps those of other parts below the same folder."""
        known = self._read() | {self.digests[i] for i in readable}
        if self.memory is None or not known - {b''} > self._known:
            return
        try:
            self.memory.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(self.memory) as temporary:
                Path(temporary).write_bytes(b''.join(sorted(known)))
        except OSError:
            return  # a cache that cannot be written costs time only

    def _read(self) -> set[bytes]:
        try:
            content = self.memory.read_bytes() if self.memory is not None else b''
        except OSError:
            return set()
        return {content[i:i + SIZE] for i in range(0, len(content) - SIZE + 1, SIZE)}


def _digest(path: str) -> bytes:
    """Checksum of the path, size and time of change of a file; empty where there is no such file."""
    try:
        status = os.stat(path)
    except (OSError, ValueError):
        return b''
    return _hash(f'{path}\0{status.st_size}\0{status.st_mtime_ns}', SIZE)


def _hash(text: str, size: int) -> bytes:
    return hashlib.blake2b(text.encode(errors='surrogateescape'), digest_size=size).digest()

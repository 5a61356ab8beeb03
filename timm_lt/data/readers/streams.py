"""timm's streaming datasets, which are refused because samplers need random access."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from ..._registry import register_reader
from ._base import DatasetReader


@register_reader('hfids')
@register_reader('tfds')
@register_reader('wds')
class StreamReader(DatasetReader):
    """A dataset that streams; reading it is refused."""

    passes_options = True

    def __init__(self, name: str, root: str | Path | None = None, **options: Any) -> None:
        super().__init__(name, root)

    def splits(self) -> NoReturn:
        raise TypeError(
            f'dataset {self.name!r} streams its images (hfids, tfds, wds); long-tailed sampling needs random access: '
            f"use 'hfds/...' instead of 'hfids/...', or a folder")

    def read(self, split: str, class_names: Sequence[str] | None = None) -> NoReturn:
        self.splits()

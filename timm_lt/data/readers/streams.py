"""timm's streaming datasets, which are refused because samplers need random access."""

from pathlib import Path
from typing import Any

from ..._registry import register_reader
from ._base import DatasetReader


@register_reader('hfids')
@register_reader('tfds')
@register_reader('wds')
class StreamReader(DatasetReader):
    """No dataset: the constructor refuses the name."""

    passes_options = True

    def __init__(self, name: str, root: str | Path | None = None, **options: Any) -> None:
        raise TypeError(
            f'dataset {name!r} streams its images (hfids, tfds, wds); long-tailed sampling needs random access: '
            f"use 'hfds/...' instead of 'hfids/...', or a folder")

"""Numbering of classes by name."""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from timm.data.readers.class_map import load_class_map

from .names import printable, sort_names

ClassMap = Mapping[str, int] | Sequence[str] | str | Path


def read_class_map(class_map: ClassMap, root: str | Path | None = None) -> dict[str, int]:
    """Name to label.

    Args:
        class_map: A mapping, the names in label order, or a file of one of them. Files are ``.txt`` (one name a line),
            ``.json`` (an object or a list) or ``.pkl`` (a dict). The file is taken from the working folder, else from
            ``root``.
        root: Folder of the data.

    Raises:
        ValueError: If labels are not 0 to C - 1, each given to at least one name.
        FileNotFoundError: If the file does not exist.
    """
    if isinstance(class_map, str | Path):
        path = Path(class_map)
        if not path.is_file() and root is not None:
            path = Path(root) / class_map
        if not path.is_file():
            raise FileNotFoundError(f'there is no class map {class_map}')
        return read_class_map(_load(path))
    if isinstance(class_map, Mapping):
        mapping = dict(class_map)
    else:
        names = list(class_map)
        if len(set(names)) < len(names):
            raise ValueError('a class map needs different names')
        mapping = {name: label for label, name in enumerate(names)}
    labels = list(mapping.values())
    if not labels or any(isinstance(v, bool) or not isinstance(v, int) for v in labels) or (
            sorted(set(labels)) != list(range(max(labels) + 1))):
        raise ValueError(f'a class map needs the labels 0 to C - 1, got {sorted(map(str, set(labels)))[:10]}')
    return {printable(str(name)): label for name, label in mapping.items()}


def _load(path: Path) -> Any:
    if path.suffix.lower() == '.json':
        return json.loads(path.read_text(encoding='utf-8'))
    if path.suffix.lower() not in ('.txt', '.pkl'):
        raise ValueError(f'class map {path} must be a .txt, .json or .pkl file')
    mapping = load_class_map(str(path))
    return {name: label for name, label in mapping.items() if name != ''}


def names_of_map(mapping: Mapping[str, int]) -> list[str]:
    """Class names in label order; names that share a label are joined by ' / '."""
    joined: dict[int, list[str]] = {}
    for name, label in mapping.items():
        joined.setdefault(label, []).append(name)
    return [' / '.join(joined[label]) for label in sorted(joined)]


def number_classes(
        names: Iterable[str],
        class_names: Sequence[str] | None = None,
        class_map: Mapping[str, int] | None = None,
) -> tuple[list[str], dict[str, int]]:
    """Class names in label order, and the label of each name.

    Args:
        names: Names that occur.
        class_names: Names in label order to follow, or None.
        class_map: Label of each name, goes before ``class_names``; or None.

    Returns:
        Names in label order; name to label. Names that neither follows are missing from the second.
    """
    if class_map is not None:
        return names_of_map(class_map), dict(class_map)
    order = list(class_names) if class_names is not None else sort_names(names)
    return order, {name: label for label, name in enumerate(order)}

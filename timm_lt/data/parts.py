"""Parts of a dataset (training, validation, test) under their usual names."""

import re
from collections.abc import Iterable

# usual names of a part, the first one ours
PART_NAMES = {
    'train': ('train', 'training'),
    'validation': ('validation', 'val', 'valid', 'eval', 'evaluation'),
    'test': ('test', 'testing'),
}
_PART_OF_NAME = {name: part for part, names in PART_NAMES.items() for name in names}
_SUFFIX = re.compile(r'[ _-]?(set|data|images)$')


def usual_part(name: str) -> str | None:
    """'train', 'validation' or 'test' for a usual name of a part in any case ('Training', 'val', 'test_set'), or None.
    """
    name = name.lower()
    return _PART_OF_NAME.get(name) or _PART_OF_NAME.get(_SUFFIX.sub('', name))


def match_split(wanted: str, splits: Iterable[str]) -> str | None:
    """The split that a name means: the name itself, else another usual name of the same part, or None."""
    splits = list(splits)
    if wanted in splits:
        return wanted
    part = usual_part(wanted)
    if part is None:
        return None
    order = PART_NAMES[part]
    same = [name for name in splits if usual_part(name) == part]
    return min(
        same, key=lambda n: (order.index(n.lower()) if n.lower() in order else len(order), n), default=None)

"""The open-set threshold of a checkpoint: the file ``open_set.json`` beside the weights."""

import dataclasses
import json
import math
from dataclasses import dataclass
from pathlib import Path

from .._files import write_text
from .errors import HubError

__all__ = ['OpenSetThreshold', 'read_open_set', 'write_open_set']

FILE = 'open_set.json'


@dataclass(frozen=True)
class OpenSetThreshold:
    """A score of the plain logits, and the value below which an image is of no known class.

    Attributes:
        score: Name of a score of :func:`timm_lt.evaluate.open_set_scores` that reads logits alone, e.g. ``'energy'``.
        threshold: The value, in units of the score.
        rule: How it was chosen.
    """
    score: str
    threshold: float
    rule: str = ''

    def __post_init__(self) -> None:
        if not isinstance(self.threshold, (int, float)) or not math.isfinite(self.threshold):
            raise ValueError(f'threshold must be a finite number, got {self.threshold!r}')


def write_open_set(folder: str | Path, threshold: OpenSetThreshold) -> Path:
    """Store a threshold in the folder of a checkpoint; an older one is replaced."""
    file = Path(folder) / FILE
    write_text(file, json.dumps(dataclasses.asdict(threshold), indent=1) + '\n')
    return file


def read_open_set(folder: str | Path) -> OpenSetThreshold | None:
    """The threshold of a checkpoint, or None.

    Raises:
        HubError: If the file is damaged.
    """
    file = Path(folder) / FILE
    if not file.is_file():
        return None
    try:
        return OpenSetThreshold(**json.loads(file.read_text(encoding='utf-8')))
    except (ValueError, TypeError) as e:
        raise HubError(f'{file} is damaged: {e}. Store the threshold again, or remove the file') from e

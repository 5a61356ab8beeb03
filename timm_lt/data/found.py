"""A record of what a reader found in a dataset, and what it left out."""

import logging
import os
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import torch

from .names import printable

__all__ = ['Found', 'LeftOut']

_logger = logging.getLogger(__name__)

EXAMPLES = 3  # names kept of each kind of thing left out

# reasons; those of QUIET are usual litter and no reason for a warning
HIDDEN = 'hidden or system files and folders'
OTHER_TYPES = 'files of a type that is no image'
OTHER_BESIDE = 'other files beside the class folders'
LINKS_BACK = 'links that lead back to a folder above'
SPECIAL = 'special files (pipes, sockets, devices)'
CLOSED = 'folders that cannot be opened'
LOOSE = 'images outside a class folder'
EMPTY_CLASSES = 'class folders without an image'
NOT_IN_MAP = 'entries of classes that the class map lacks'
BESIDE_PARTS = 'folders with images beside the parts'
NO_PATH = 'rows without an image'
NO_LABEL = 'rows without a label'
QUIET = (HIDDEN, OTHER_BESIDE, LINKS_BACK)


def is_main_process() -> bool:
    """Whether this is the only process, or the first of several."""
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    return not distributed or torch.distributed.get_rank() == 0


@dataclass
class LeftOut:
    """Things left out for one reason.

    Attributes:
        count: How many.
        examples: The first few names.
        types: Counts by file type, where that is the reason.
    """
    count: int = 0
    examples: list[str] = field(default_factory=list)
    types: Counter = field(default_factory=Counter)


@dataclass
class Found:
    """Findings of a reader.

    Attributes:
        source: Folder, file or name of the dataset.
        part: Name of the part.
        images: Number of images.
        classes: Number of classes.
        smallest: Images of the smallest class.
        largest: Images of the largest class.
        left_out: What was left out, by reason.
        notes: Further sentences for the user.
    """
    source: str
    part: str = ''
    images: int = 0
    classes: int = 0
    smallest: int = 0
    largest: int = 0
    left_out: dict[str, LeftOut] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def leave_out(self, reason: str, name: str) -> None:
        """Record one thing that is left out."""
        group = self.left_out.setdefault(reason, LeftOut())
        group.count += 1
        if reason in (OTHER_TYPES, OTHER_BESIDE):
            group.types[os.path.splitext(name)[1].lower() or 'no type'] += 1
        if len(group.examples) < EXAMPLES:
            group.examples.append(printable(name))

    def count(self, targets: Any, class_names: list[str] | None) -> None:
        """Record the numbers of images and classes."""
        sizes = torch.bincount(targets, minlength=len(class_names or ()))
        self.images, self.classes = len(targets), len(sizes)
        self.smallest, self.largest = (int(sizes.min()), int(sizes.max())) if len(sizes) else (0, 0)

    @property
    def needs_attention(self) -> bool:
        """More was left out than usual litter, or there is a note."""
        return bool(self.notes) or any(reason not in QUIET for reason in self.left_out)

    def lines_left_out(self) -> list[str]:
        """A line for each reason to leave something out."""
        lines = []
        for reason, group in self.left_out.items():
            names = ', '.join(group.examples) + (', ...' if group.count > len(group.examples) else '')
            common = sorted(group.types.items(), key=lambda item: (-item[1], item[0]))[:5]
            types = f' ({", ".join(f"{suffix} {n}" for suffix, n in common)})' if common else ''
            lines.append(f'left out: {group.count} {reason}{types}: {names}')
        return lines

    def __str__(self) -> str:
        sizes = f'{self.smallest} to {self.largest}' if self.smallest < self.largest else self.largest
        first = (
            f'{self.part or "data"}: {self.images} images of {self.classes} classes ({sizes} a class) in '
            f'{printable(self.source)}')
        return '\n  '.join([first, *self.lines_left_out(), *(f'note: {note}' for note in self.notes)])

    def log(self) -> None:
        """Log the record on the main process; a warning where it needs attention."""
        if not is_main_process():
            return
        _logger.log(logging.WARNING if self.needs_attention else logging.INFO, '%s', self)

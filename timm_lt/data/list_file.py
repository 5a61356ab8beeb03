"""Image lists: ``relative/path label`` lines, as ImageNet-LT, Places-LT and iNaturalist 2018 come, and tables."""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from .._validate import check_option
from .classes import number_classes
from .found import NO_LABEL, NO_PATH, NOT_IN_MAP, Found
from .image_files import ImageFiles
from .names import printable
from .parts import match_split
from .rows import TABLES, Rows, read_rows
from .unreadable import BAD_IMAGES

__all__ = ['ListFileDataset']


class ListFileDataset(ImageFiles):
    """Images named in a file: a text file, one ``relative/path label`` a line, or a CSV, TSV or Parquet table.

    Labels are whole numbers, or names: names are numbered in natural order, or follow ``class_names`` or
    ``class_map``. In a text file the label is the last word of a line, so paths may hold spaces. Names need a
    ``class_map`` there. Empty lines are passed over.

    Args:
        list_file: The file; text and CSV are UTF-8.
        image_root: Folder that the paths start from.
        transform: Transform of the images.
        class_names: Names in label order, or None.
        split: Part to keep, where a table has a column ``split``; None keeps all rows.
        class_map: Label of each name, or None.
        input_key: Column of the paths, see :func:`read_rows`.
        target_key: Column of the labels, see :func:`read_rows`.
        bad_images: 'error': a row without path or label, or whose name ``class_map`` lacks, is an error. 'skip': such
            rows are left out.
        input_img_mode: Mode of the images, see :func:`open_image`.

    Attributes:
        targets: Labels, a list of N.
        found: What was found and left out.

    Raises:
        ValueError: If a row is not a path and a label (the line is named), or there is no row.
        FileNotFoundError: If the list or the image root does not exist.
    """

    found: Found

    def __init__(
            self,
            list_file: str | Path,
            image_root: str | Path,
            transform: Callable | None = None,
            class_names: Sequence[str] | None = None,
            *,
            split: str | None = None,
            class_map: Mapping[str, int] | None = None,
            input_key: str | None = None,
            target_key: str | None = None,
            bad_images: str = 'error',
            input_img_mode: str | None = 'RGB',
    ) -> None:
        self.list_file = Path(list_file)
        check_option('bad_images', bad_images, BAD_IMAGES)
        if not self.list_file.is_file():
            raise FileNotFoundError(f'there is no list file {self.list_file}')
        if not Path(image_root).is_dir():
            raise FileNotFoundError(f'there is no image folder {image_root} for the list {self.list_file}')
        self.found = Found(str(self.list_file), split or '')
        rows = self._part(read_rows(self.list_file, input_key, target_key), split)
        rows = self._without(NO_PATH, rows, [path is None for path in rows.paths], bad_images)
        rows = self._without(NO_LABEL, rows, [label is None for label in rows.labels], bad_images)
        if not rows.paths:
            raise ValueError(f'{self.list_file} names no image')
        if class_map is not None:
            unknown = [printable(str(label)) not in class_map for label in rows.labels]
            rows = self._without(NOT_IN_MAP, rows, unknown, bad_images)
        class_names, targets = self._number(rows, class_names, class_map)
        paths = [str(path) for path in rows.paths]
        self._note_repeats(paths, targets)
        super().__init__(image_root, paths, targets, class_names, transform, input_img_mode)

    def _part(self, rows: Rows, split: str | None) -> Rows:
        """The rows of a part, where the table has a column of parts."""
        if rows.splits is None or split is None:
            return rows
        own = match_split(split, set(rows.splits))
        if own is None:
            raise ValueError(f'{self.list_file} has no part {split!r}, only {sorted(set(rows.splits))[:10]}')
        return rows.choose([name == own for name in rows.splits])

    def _without(self, reason: str, rows: Rows, bad: list[bool], bad_images: str) -> Rows:
        places = [place for place, b in zip(rows.places, bad) if b]
        if places and bad_images == 'error':
            raise ValueError(
                f'{self.list_file}, {places[0]}: {len(places)} of {len(bad)} are {reason}; repair them, or leave them '
                f"out with bad_images='skip' (--bad-images skip)")
        for place in places:
            self.found.leave_out(reason, place)
        return rows.choose([not b for b in bad]) if places else rows

    def _number(
            self, rows: Rows, class_names: Sequence[str] | None,
            class_map: Mapping[str, int] | None) -> tuple[list[str] | None, list[int]]:
        """Class names and labels of the rows."""
        numbers = [isinstance(label, int) for label in rows.labels]
        names = [printable(str(label)) for label in rows.labels]
        if class_map is None and (all(numbers) or self.list_file.suffix.lower() not in TABLES):
            return None if class_names is None else list(class_names), self._check_numbers(rows, class_names)
        if class_map is None and any(numbers):
            i = numbers.index(sum(numbers) <= len(numbers) / 2)  # one of the rarer kind
            raise ValueError(
                f'{self.list_file} mixes labels that are numbers ({sum(numbers)}) and names '
                f'({len(numbers) - sum(numbers)}), e.g. {names[i]!r} in {rows.places[i]}; repair them, or give every '
                f'name its label by a class map (class_map, --class-map)')
        order, labels = number_classes(names, class_names, class_map)
        unknown = sorted(set(names) - set(labels))
        if unknown:
            raise ValueError(
                f'{self.list_file} has classes {unknown[:5]} that the training part lacks; remove them or add training '
                f'images')
        return order, [labels[name] for name in names]

    def _check_numbers(self, rows: Rows, class_names: Sequence[str] | None) -> list[int]:
        targets = []
        for label, place in zip(rows.labels, rows.places):
            if not isinstance(label, int) or label < 0:
                raise ValueError(
                    f'{self.list_file}, {place}: the label must be a whole number >= 0, got {printable(str(label))!r}; '
                    f'names are for tables (.csv, .tsv, .parquet), or need a class map (class_map, --class-map)')
            targets.append(label)
        highest = max(targets)
        if class_names is not None and highest >= len(class_names):
            raise ValueError(
                f'{self.list_file} has labels up to {highest}, but there are {len(class_names)} classes')
        return targets

    def _note_repeats(self, paths: Sequence[str], targets: Sequence[int]) -> None:
        repeated = [path for path, times in Counter(paths).items() if times > 1]
        if not repeated:
            return
        pairs = Counter(path for path, _ in set(zip(paths, targets)))
        torn = sum(pairs[path] > 1 for path in repeated)
        self.found.notes.append(
            f'{len(repeated)} images are listed more than once, e.g. {printable(repeated[0])}; {torn} of them with '
            f'different labels')

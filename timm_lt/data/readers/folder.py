"""'folder': a folder of class folders, or one such folder for each part."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..._registry import register_reader
from ..._text import counted
from ..classes import number_classes
from ..found import BESIDE_PARTS, EMPTY_CLASSES, LOOSE, NOT_IN_MAP, OTHER_TYPES, Found
from ..image_files import ImageFiles
from ..names import natural_key, printable
from ..parts import match_split, usual_part
from ._base import NamedClassReader, share_files
from ._scan import has_images, image_types, scan_classes, subfolders


@register_reader('folder')
class FolderReader(NamedClassReader):
    """Images in class folders; the first level of folders names the class, deeper ones belong to it.

    ``root`` holds class folders, or one folder of class folders for each part. Parts have usual names (``train``,
    ``val``, ``test`` ...) in any case. A folder without parts is all training images. A folder with the name of a part
    that holds images and no folder is a class.

    Args:
        name: Not used.
        root: The folder.
        bad_images: 'error': class folders that are empty, closed or not in the class map are errors. So are images
            outside class folders. 'skip': all these are left out.
        input_key: File types that count as images, e.g. 'png;jpg'; None: :data:`IMAGE_TYPES` and timm's.
        **shared: ``class_map`` and ``input_img_mode``, see :class:`NamedClassReader`.
    """

    examples = ('folder', 'imagefolder')
    numbers_classes = True
    stored = True

    def __init__(
            self,
            name: str = '',
            root: str | Path | None = None,
            *,
            input_key: str | None = None,
            **shared: Any,
    ) -> None:
        super().__init__(name, root, **shared)
        self.types = image_types(input_key)

    def splits(self) -> list[str]:
        return self._parts(self.root) if self.root is not None and self.root.is_dir() else []

    def read(self, split: str, class_names: Sequence[str] | None = None) -> ImageFiles:
        if self.root is None:
            raise ValueError('a folder dataset needs the folder: root (--data-dir)')
        if not self.root.is_dir():
            raise FileNotFoundError(f'there is no image folder {printable(str(self.root))}')
        folder, found = self._part_folder(self.root, split)
        classes = scan_classes(folder, self.types, found, self.skip)
        self._check(folder, classes, found)
        names = {printable(name): name for name in classes}
        if len(names) < len(classes):
            raise ValueError(f'{folder} has class folders whose names look alike once printed; rename them')
        classes = self._check_empty(folder, classes, found, class_names)
        order, labels = number_classes(map(printable, classes), class_names, self.class_map)
        classes = self._check_unknown(folder, classes, found, labels)

        samples: list[tuple[str, int]] = []
        for name, files in classes.items():
            label = labels[printable(name)]
            samples += [(path, label) for path in files]
        samples.sort(key=lambda sample: natural_key(sample[0]))
        if not samples:
            raise ValueError(f'{folder} has no images of the classes {order[:10]}')
        self._note_nested(classes, found)
        paths, targets = zip(*samples)
        dataset = ImageFiles(folder, paths, targets, order, input_img_mode=self.input_img_mode)
        dataset.found = found
        return dataset

    def shares_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        return share_files(one[1], two[1])

    def _parts(self, root: Path) -> list[str]:
        """Folders of the root that are parts."""
        named = [name for name in subfolders(root) if usual_part(name)]
        flat = [name for name in named if self._holds_images_only(root / name)]
        kinds = {usual_part(name) for name in named}
        if len(flat) < len(named):
            return named
        others = [name for name in subfolders(root) if name not in named]
        if len(kinds) > 1 and not any(has_images(root / name, self.types) for name in others):
            raise ValueError(
                f'{root} has the parts {named} but no class folders in them; expected '
                f'{root / named[0]}/CLASS/IMAGE, or a table of the labels: list/FILE')
        return []

    def _holds_images_only(self, folder: Path) -> bool:
        return has_images(folder, self.types, deep=False) and not any(
            has_images(folder / name, self.types) for name in subfolders(folder))

    def _part_folder(self, root: Path, split: str) -> tuple[Path, Found]:
        """Folder of a part, and a record that names folders beside the parts."""
        parts = self._parts(root)
        name = match_split(split, parts)
        if name is None and usual_part(split) is None and (root / split).is_dir():
            return root / split, Found(str(root / split), split)
        if name is None:
            if parts:
                raise ValueError(f'{root} has no part {split!r}, only {parts}')
            if usual_part(split) != 'train':
                raise ValueError(
                    f'{root} has no part {split!r}: make a folder {root / split}, or split the images with '
                    f'timm_lt.data.split_validation')
            return root, Found(str(root), split)
        found = Found(str(root / name), name)
        kinds = {usual_part(part) for part in parts}
        beside = [n for n in subfolders(root) if n not in parts and has_images(root / n, self.types)]
        if beside and len(kinds) == 1:
            raise ValueError(
                f'{root} has the part {name!r} beside folders with images {beside[:5]}, so {name!r} may be a class '
                f'with the name of a part. If it is a part, name the folder {root / name} itself; if it is a class, '
                f'rename it')
        for n in [*beside, *(p for p in parts if p != name and usual_part(p) == usual_part(name))]:
            found.leave_out(BESIDE_PARTS, n)
        return root / name, found

    def _check(self, folder: Path, classes: dict[str, list[str]], found: Found) -> None:
        """Refuse images without a class, a folder without images, and parts inside the class folders."""
        loose = found.left_out.get(LOOSE)
        if loose and not self.skip:
            raise ValueError(
                f'{folder} has {loose.count} images outside a class folder, e.g. {loose.examples[0]}; move them into '
                f"one, e.g. {folder}/cat/1.jpg, or leave them out with bad_images='skip' (--bad-images skip)")
        if not any(classes.values()):
            left_out = found.left_out.get(OTHER_TYPES)
            also = f' Its files are of type {sorted(left_out.types)[:10]}.' if left_out else ''
            raise ValueError(
                f'{folder} has no images in class folders; expected {folder}/CLASS/IMAGE, e.g. {folder}/cat/1.jpg.'
                f'{also}')
        inner = {path.split(os.sep)[1] for paths in classes.values() for path in paths if path.count(os.sep) > 1}
        kinds = {usual_part(name) for name in inner} - {None}
        if len(kinds) > 1:
            name = next(iter(classes))
            raise ValueError(
                f'{folder} has parts {sorted(n for n in inner if usual_part(n))} inside '
                f'{[printable(n) for n in classes][:5]}; expected {folder}/PART/CLASS/IMAGE. If the parts lie one '
                f'folder deeper, name that folder, e.g. {printable(str(folder / name))}')

    def _check_empty(
            self, folder: Path, classes: dict[str, list[str]], found: Found,
            class_names: Sequence[str] | None) -> dict[str, list[str]]:
        """Classes with images; an empty class folder is an error in the training part."""
        empty = [name for name, paths in classes.items() if not paths]
        if empty and class_names is None and not self.skip:
            raise ValueError(
                f'{folder} has class folders without an image: {[printable(n) for n in empty[:10]]} (files of type '
                f'{", ".join(sorted(self.types))} count); add training images, remove the folders, or leave them out '
                f"with bad_images='skip' (--bad-images skip)")
        for name in empty:
            found.leave_out(EMPTY_CLASSES, name)
        return {name: paths for name, paths in classes.items() if paths}

    def _check_unknown(
            self, folder: Path, classes: dict[str, list[str]], found: Found,
            labels: dict[str, int]) -> dict[str, list[str]]:
        """Classes that have a label; others are an error, because their images would vanish."""
        unknown = [name for name in classes if printable(name) not in labels]
        if unknown and self.class_map is None:
            raise ValueError(
                f'{folder} has class folders {[printable(n) for n in unknown[:5]]} that the training part lacks; '
                f'remove them or add training images')
        if unknown and not self.skip:
            raise ValueError(
                f'{folder} has class folders {[printable(n) for n in unknown[:5]]} that the class map lacks; add '
                f"them, or leave them out with bad_images='skip' (--bad-images skip)")
        for name in unknown:
            found.leave_out(NOT_IN_MAP, name)
        return {name: paths for name, paths in classes.items() if name not in unknown}

    @staticmethod
    def _note_nested(classes: dict[str, list[str]], found: Found) -> None:
        inner = {os.path.dirname(path) for paths in classes.values() for path in paths if path.count(os.sep) > 1}
        if inner:
            found.notes.append(
                f'images in {counted(len(inner), "folder")} inside class folders, e.g. {printable(min(inner))}, belong '
                f'to the class of the first folder')
        if inner and len(classes) == 1:
            found.notes.append(
                f'all images belong to the one class {printable(next(iter(classes)))!r}; if its folders are the '
                f'classes, name it as the folder of the data')
        odd = [printable(name) for name in classes if printable(name) != name]
        if odd:
            found.notes.append(f'class names that are not UTF-8 are shown as {odd[:5]}')

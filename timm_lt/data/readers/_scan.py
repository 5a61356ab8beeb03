"""Walk through a folder of class folders."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from timm.data.readers import get_img_extensions

from ..found import CLOSED, HIDDEN, LINKS_BACK, LOOSE, OTHER_BESIDE, OTHER_TYPES, SPECIAL, Found
from ..names import natural_key

# files of these types are images; one that Pillow cannot read here is named as unreadable, not passed over
IMAGE_TYPES = frozenset((
    '.png', '.jpg', '.jpeg', '.jpe', '.jfif', '.bmp', '.gif', '.tif', '.tiff', '.webp', '.avif', '.heic', '.heif',
    '.jp2', '.ppm', '.pgm', '.pbm', '.pnm'))
# what systems and tools leave in folders, besides names with a leading dot
SYSTEM_NAMES = frozenset((
    'thumbs.db', 'ehthumbs.db', 'desktop.ini', '__macosx', 'lost+found', '@eadir', '$recycle.bin',
    'system volume information', '__pycache__', 'icon\r'))


def image_types(input_key: str | None = None) -> frozenset[str]:
    """File types that count as images: those of ``input_key`` ('png;jpg'), else our list and timm's."""
    if input_key:
        types = [t.strip().lower() for t in input_key.split(';') if t.strip()]
        return frozenset(t if t.startswith('.') else f'.{t}' for t in types)
    return IMAGE_TYPES | get_img_extensions(as_set=True)


def is_hidden(name: str) -> bool:
    """Hidden files and folders, and what systems leave behind (``Thumbs.db``, ``__MACOSX``, ...)."""
    return name[0] == '.' or name.lower() in SYSTEM_NAMES


def subfolders(folder: Path) -> list[str]:
    """Visible folders in a folder, in label order."""
    with os.scandir(folder) as entries:
        return sorted((e.name for e in entries if not is_hidden(e.name) and e.is_dir()), key=natural_key)


def has_images(folder: Path, types: Collection[str], deep: bool = True) -> bool:
    """Whether a folder holds an image; ``deep``: at any depth. Stops at the first one."""
    return next(_images(folder, Found(''), types, deep=deep), None) is not None


def scan_classes(folder: Path, types: Collection[str], found: Found, skip: bool = False) -> dict[str, list[str]]:
    """Images by class, the first level of folders, at any depth below it.

    Args:
        folder: Folder of class folders.
        types: File types that count as images.
        found: Records what is left out. Images beside the class folders are recorded as :data:`LOOSE`.
        skip: Leave out folders that cannot be opened.

    Returns:
        Class folder to the paths of its images relative to ``folder``; an empty list for a class without an image.
        Links to folders are followed, unless they lead back to a folder above.

    Raises:
        OSError: If a folder cannot be opened.
    """
    classes = {name: list(_images(folder, found, types, name, skip)) for name in subfolders(folder)}
    for path in _images(folder, found, types, deep=False, other=OTHER_BESIDE):
        found.leave_out(LOOSE, path)
    return classes


def images_in_order(folder: Path, types: Collection[str], found: Found) -> Iterator[str]:
    """Images at any depth, relative to ``folder``: those of a folder in natural order, then those of its folders.

    One folder at a time is held in memory.

    Args:
        folder: Folder of images.
        types: File types that count as images.
        found: Records what is left out, folders that cannot be opened included.
    """
    return _images(folder, found, types, skip=True, ordered=True)


def _images(
        root: Path,
        found: Found,
        types: Collection[str],
        start: str = '',
        skip: bool = False,
        deep: bool = True,
        other: str = OTHER_TYPES,
        ordered: bool = False,
) -> Iterator[str]:
    """Paths of the images below ``root/start``, relative to ``root``; ``other``: reason of other files."""
    base = os.fspath(root)
    pending: list[tuple[str, tuple[str, ...]]] = [(start, (os.path.realpath(root),))]
    while pending:
        folder, links = pending.pop()
        prefix = folder + os.sep if folder else ''
        try:
            entries = os.scandir(os.path.join(base, folder))
        except OSError:
            if not skip:
                raise
            found.leave_out(CLOSED, prefix)
            continue
        inner_folders = []
        with entries:
            for entry in sorted(entries, key=lambda e: natural_key(e.name)) if ordered else entries:
                name = entry.name
                path = prefix + name
                if is_hidden(name):
                    found.leave_out(HIDDEN, path)
                elif entry.is_dir():
                    if deep:
                        inner = _follow(entry, links, base, folder)
                        if inner is None:
                            found.leave_out(LINKS_BACK, path)
                        else:
                            inner_folders.append((path, inner))
                elif os.path.splitext(name)[1].lower() not in types:
                    found.leave_out(other, path)
                elif entry.is_file() or entry.is_symlink():  # a broken link is an image that cannot be read
                    yield path
                else:
                    found.leave_out(SPECIAL, path)
        pending += reversed(inner_folders)


def _follow(entry: os.DirEntry, links: tuple[str, ...], base: str, folder: str) -> tuple[str, ...] | None:
    """Real folders from which links were taken on the way into ``entry``; None if it leads back to one above."""
    if not entry.is_symlink():
        return links
    links += (os.path.realpath(os.path.join(base, folder)),)
    target = os.path.realpath(entry.path)
    if any(f'{real}{os.sep}'.startswith(f'{target.rstrip(os.sep)}{os.sep}') for real in links):
        return None
    return links

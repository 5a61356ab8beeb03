"""Reading a folder of class folders: finding its files, and decoding them, by timm's reader and by ours, in turns.

    python benchmarks/reading_speed.py [--images 100000] [--classes 1000] [--rounds 7] [--output FILE.txt]

Files are found in a folder of empty files. Images are decoded from JPEG files of 500x375 pixels. The old form of
finding is that of this package before it had its own reader: timm's reader, then two walks for classes without an image
and for classes that the training part lacks. The ratio is ours over the other.
"""

import argparse
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import timm.data
from _report import Report
from _timing import ratios_in_turns
from PIL import Image
from timm.data.readers import get_img_extensions

from timm_lt.data import ImageSubset, create_dataset
from timm_lt.data.pixels import open_image

DECODED = 200


def make_files(root: Path, images: int, classes: int) -> None:
    for c in range(classes):
        folder = root / f'n{c:08d}'
        folder.mkdir()
        for i in range(c, images, classes):
            (folder / f'n{c:08d}_{i}.JPEG').touch()


def make_images(root: Path, images: int) -> list[Path]:
    rng = np.random.default_rng(0)
    folder = root / 'photos'
    folder.mkdir()
    for i in range(images):
        coarse = Image.fromarray(rng.integers(0, 256, (12, 16, 3), dtype=np.uint8))
        coarse.resize((500, 375), Image.Resampling.BICUBIC).save(folder / f'{i}.jpg')
    return sorted(folder.iterdir())


def old_form(root: Path) -> None:
    """timm's reader, the two checks around it, and the labels."""
    dataset, types = timm.data.create_dataset('', root=str(root), search_split=False), get_img_extensions(as_set=True)
    classes = dataset.reader.class_to_idx

    def has_image(files: list[str]) -> bool:
        return any(os.path.splitext(file)[1].lower() in types for file in files)

    for path in root.iterdir():
        if path.name not in classes:
            any(has_image(files) for _, _, files in os.walk(path, followlinks=True))
    for path, _, files in os.walk(root, followlinks=True):
        if os.path.basename(path) not in classes:
            has_image(files)
    ImageSubset(dataset)


def read_as_timm(path: Path) -> Image.Image:
    with open(path, 'rb') as file:
        return Image.open(file).convert('RGB')


def read_all(read: Callable, paths: list[Path]) -> None:
    for path in paths:  # one image at a time: pages of images that are kept cost more than reading
        read(path)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--images', type=int, default=100_000)
    parser.add_argument('--classes', type=int, default=1000)
    parser.add_argument('--rounds', type=int, default=7)
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()
    report = Report()
    with tempfile.TemporaryDirectory() as folder:
        root, photos = Path(folder, 'files'), Path(folder, 'photos')
        root.mkdir()
        photos.mkdir()
        make_files(root, args.images, args.classes)
        paths = make_images(photos, DECODED)
        table = {
            f'find {args.images} files in {args.classes} classes': ({
                'old form': lambda: old_form(root),
                'ours': lambda: create_dataset('folder', root),
            }, 'old form'),
            f'decode {DECODED} JPEG files of 500x375': ({
                'as timm': lambda: read_all(read_as_timm, paths),
                'ours': lambda: read_all(open_image, paths),
            }, 'as timm'),
        }
        for title, (functions, baseline) in table.items():
            report.line(title)
            for name, ratio in ratios_in_turns(functions, baseline, args.rounds).items():
                report.line(f'  {name:26s} {ratio.milliseconds:8.0f} ms  {ratio.median:.2f} '
                            f'({ratio.low:.2f} to {ratio.high:.2f})')
    report.write(args.output)


if __name__ == '__main__':
    main()

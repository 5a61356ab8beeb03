"""The parts of the data that a training run used, from the files of its folder."""

import argparse
import json
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from ...data import ImageSubset, create_dataset, drop_unreadable
from ...data.factory import FOLDER_NAMES, create_reader
from .network import EvaluationError

READER_OPTIONS = ('class_map', 'input_key', 'target_key')  # that a run names apart from --dataset-kwargs


@dataclass(frozen=True)
class RunParts:
    """The parts of a run.

    Attributes:
        folder: Of the run.
        options: Resolved options of the run, from ``args.yaml``.
        members: ``parts.json``: of each part its ``split``, the number of ``images`` of the split, its ``indices``.
        labels: Checksum of the labels of each part, from ``fingerprint.json``.
    """
    folder: Path
    options: dict[str, Any]
    members: dict[str, Any]
    labels: dict[str, int]

    @classmethod
    def of(cls, checkpoint: str) -> 'RunParts | None':
        """The parts of the run that a checkpoint lies in; None for other checkpoints and runs without ``parts.json``.

        Raises:
            EvaluationError: If a file of the run is damaged.
        """
        folder = Path(checkpoint.removeprefix('local-dir:'))
        folder = folder.parent if folder.name == 'hub' else folder
        if not (folder / 'parts.json').is_file():
            return None
        try:
            options = yaml.safe_load((folder / 'args.yaml').read_text(encoding='utf-8'))
            members = json.loads((folder / 'parts.json').read_text(encoding='utf-8'))
            labels = json.loads((folder / 'fingerprint.json').read_text(encoding='utf-8'))['labels']
        except (OSError, ValueError, KeyError, yaml.YAMLError) as e:
            raise EvaluationError(f'the parts of the run {folder} cannot be read: {e}') from e
        return cls(folder, options, members, labels)

    def fill(self, args: argparse.Namespace) -> bool:
        """Take data, split rule and views of the run where the command line names none.

        Returns:
            Whether the data of the evaluation are those of the run.
        """
        name, root = self.options.get('dataset') or '', self.options.get('data_dir')
        if not args.dataset and not args.data_dir:
            args.dataset, args.data_dir = name, root
        if args.split_rule == 'auto':
            args.split_rule = self.options.get('split_rule', 'auto')
        return _name(args.dataset) == _name(name) and _same_folder(args.data_dir, root)

    def has(self, part: str) -> bool:
        return part in self.members

    def images(self, part: str, class_names: list[str] | None = None) -> ImageSubset:
        """The images of a part of the run.

        Args:
            part: 'train', 'validation' or 'test'.
            class_names: Names in label order that the labels follow.

        Raises:
            EvaluationError: If the data have changed since the run.
        """
        split, indices = self.members[part]['split'], self.members[part]['indices']
        images = self._split(split, class_names)
        found, expected = len(images.dataset), self.members[part]['images']
        if found != expected:
            raise self._changed(f'split {split!r} has {found} images, and had {expected}')
        if indices is not None:
            images = ImageSubset(images.dataset, indices)
        if self.options.get('bad_images') == 'skip':
            images = drop_unreadable(images, 'skip')
        if part in self.labels and zlib.crc32(images.targets.numpy().tobytes()) != self.labels[part]:
            raise self._changed(f'its {part} part has other labels')
        return images

    def trained_on(self, split: str, images: Any, class_names: list[str] | None = None) -> bool:
        """Whether another split of the data of the run holds an image that the run was trained on."""
        reader = create_reader(
            self.options.get('dataset') or '', self.options.get('data_dir'), **self._reader_options())
        return reader.shares_images(
            (self.members['train']['split'], self.images('train', class_names)), (split, images))

    def _split(self, split: str, class_names: list[str] | None) -> ImageSubset:
        return create_dataset(
            self.options.get('dataset') or '', self.options.get('data_dir'), split, class_names=class_names,
            bad_images=self.options.get('bad_images', 'error'), **self._reader_options())

    def _reader_options(self) -> dict[str, Any]:
        given = {name: self.options.get(name) for name in READER_OPTIONS}
        return dict(self.options.get('dataset_kwargs') or {}) | {k: v for k, v in given.items() if v}

    def _changed(self, how: str) -> EvaluationError:
        return EvaluationError(
            f'the data of the run {self.folder} have changed since it was trained: {how}; restore them, or name other '
            f'data by --dataset and --data-dir')


def _name(dataset: str) -> str:
    """A name of a dataset; the names that mean a folder are one."""
    return '' if dataset.lower() in FOLDER_NAMES else dataset


def _same_folder(one: str | None, two: str | None) -> bool:
    return one == two or (one is not None and two is not None and Path(one).resolve() == Path(two).resolve())

"""'torch/NAME': torchvision's sets by timm's names."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm.data

from ..._registry import register_reader
from ..._validate import nearest_names
from ..parts import match_split, usual_part
from ._base import DatasetReader


@register_reader('torch')
class TorchvisionReader(DatasetReader):
    """A set of torchvision, labels fixed.

    Args:
        name: timm's name of the set.
        root: Folder where it is stored.
        download: Download it where it is missing.
        **options: More arguments of ``timm.data.create_dataset``.
    """

    examples = tuple(f'torch/{name}' for name in (
        'cifar10', 'cifar100', 'fashion_mnist', 'imagenet', 'inaturalist', 'kmnist', 'mnist', 'places365', 'qmnist'))
    stored = True
    passes_options = True

    def __init__(
            self,
            name: str,
            root: str | Path | None = None,
            *,
            bad_images: str = 'error',
            download: bool = False,
            **options: Any,
    ) -> None:
        super().__init__(name, root, bad_images=bad_images)
        if 'class_map' in options:  # timm takes it and does nothing with it
            raise TypeError(f'dataset {f"torch/{name}"!r} already has labels; class_map (--class-map) is for '
                            f'folders, lists and hfds/...')
        self.options = {**options, 'download': download}

    def splits(self) -> list[str]:
        return ['train', 'validation']

    def read(self, split: str, class_names: Sequence[str] | None = None) -> Any:
        name = f'torch/{self.name}'
        root = None if self.root is None else str(self.root)
        try:
            # a part under another usual name than timm's would be the second one, also 'Train'
            own = match_split(split, self.splits()) or split
            dataset = timm.data.create_dataset(name, root=root, split=own, **self.options)
        except AssertionError as e:  # timm's answer to an unknown name
            raise ValueError(f'timm cannot create dataset {name!r}: {e}. {nearest_names(name, self.examples)}') from e
        if len(dataset) == 0:
            raise ValueError(f'dataset {name!r}, split {split!r}, has no images')
        return dataset

    def shares_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        # two parts: every name but that of training is the other one
        return (usual_part(one[0]) == 'train') == (usual_part(two[0]) == 'train')

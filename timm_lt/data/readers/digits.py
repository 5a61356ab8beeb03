"""'timm_lt/digits': the embedded digits."""

from collections.abc import Sequence
from typing import Any

from ..._registry import register_reader
from ..._validate import nearest_names
from ..digits import Digits
from ..parts import usual_part
from ._base import DatasetReader


@register_reader('timm_lt')
class DigitsReader(DatasetReader):
    """scikit-learn's digits, labels fixed."""

    examples = ('timm_lt/digits',)

    def splits(self) -> list[str]:
        return ['train', 'test']

    def read(self, split: str, class_names: Sequence[str] | None = None) -> Digits:
        if self.name != 'digits':
            raise ValueError(f'unknown dataset {f"timm_lt/{self.name}"!r}. {nearest_names(self.name, ["digits"])}')
        return Digits(split)

    def shares_images(self, one: tuple[str, Any], two: tuple[str, Any]) -> bool:
        return (usual_part(one[0]) == 'train') == (usual_part(two[0]) == 'train')  # two parts, whatever their names

"""Options of fine-tuning: the parameters that are trained, and the classifier at the start."""

from dataclasses import dataclass
from typing import Any, ClassVar

from ._option import OptionGroup, option


@dataclass(frozen=True)
class FinetuneOptions(OptionGroup):
    """The parameters of a pretrained network that are trained, and the start of its classifier."""
    title: ClassVar[str] = 'fine-tuning'

    finetune: str | None = option(
        None, "parameters to train beside the classifier: 'full', 'head', 'bias', 'norm', 'lora', 'adaptformer' or "
        "'blocks:N', the last N blocks; None: all, as full", metavar='METHOD')
    finetune_kwargs: dict[str, Any] = option({}, 'settings of the method, e.g. rank=8')
    head_init: str | None = option(
        None, "classifier at the start: 'class_mean' or 'logistic' of the frozen features, a safetensors file of class "
        "vectors (C, D), or 'random'; None: random", metavar='HOW')
    head_init_images: int = option(
        100, 'images of each class, at most, for class_mean and logistic', within='[1, inf)')
    feature_copies: int = option(
        0, 'augmented copies of each training image whose features --finetune head computes; 0: the image under the '
        'evaluation transform', within='[0, inf)')
    feature_file: str = option(
        '', 'features.safetensors of an earlier run, for --finetune head in place of computing them', metavar='FILE')

    @property
    def probes(self) -> bool:
        """The classifier alone is trained, on features that are computed once."""
        return self.finetune == 'head'

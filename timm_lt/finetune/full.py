"""Fine-tuning of all weights."""

from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor

from .._registry import register_finetuning
from ._base import FinetuneMethod


@register_finetuning('full', paper='Yosinski et al., NeurIPS 2014')
class FullTuning(FinetuneMethod):
    """Train every parameter, and BatchNorm's statistics with them.

    Paper: J. Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014,
    https://arxiv.org/abs/1411.1792
    """

    trains_statistics = True

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        return model.parameters()

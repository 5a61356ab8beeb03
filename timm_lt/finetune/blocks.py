"""Fine-tuning of the last blocks."""

from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor

from .._registry import register_finetuning
from .._validate import check_whole
from ._base import FinetuneMethod, layer_groups


@register_finetuning('blocks', paper='Yosinski et al., NeurIPS 2014')
class BlockTuning(FinetuneMethod):
    """Train the last blocks whole, with the norm after them. Layers before them need no activations.

    Paper: J. Yosinski et al., "How transferable are features in deep neural networks?", NeurIPS 2014,
    https://arxiv.org/abs/1411.1792

    Args:
        last: Number of blocks from the output on, >= 1: transformer blocks, or residual blocks of a convolutional
            network.
    """

    trains_statistics = True

    def __init__(self, *, last: int) -> None:
        self.last = check_whole('last', last, 1)

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        groups = layer_groups(model)
        if self.last > len(groups):
            raise ValueError(
                f'{type(model).__name__} has {len(groups)} blocks, got last={self.last}; give fewer, or use full')
        parameters = dict(model.named_parameters())
        return [parameters[name] for group in groups[-self.last:] for name in group]

"""Tuning of the normalisation layers."""

from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor

from .._registry import register_finetuning
from ._base import FinetuneMethod


@register_finetuning('norm', paper='Frankle et al., ICLR 2021')
class NormTuning(FinetuneMethod):
    """Train scale and shift of the normalisation layers: LayerNorm, BatchNorm, GroupNorm, RMSNorm and their kin.

    BatchNorm keeps the statistics of the pretraining.

    Paper: J. Frankle et al., "Training BatchNorm and Only BatchNorm: On the Expressive Power of Random Features in
    CNNs", ICLR 2021, https://arxiv.org/abs/2003.00152
    """

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        found = [p for m in model.modules() if 'norm' in type(m).__name__.lower() for p in m.parameters(recurse=False)]
        if not found:
            raise ValueError(f'{type(model).__name__} has no normalisation layer to tune; choose another method')
        return found

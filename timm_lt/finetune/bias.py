"""Tuning of the biases (BitFit)."""

from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor

from .._registry import register_finetuning
from ._base import FinetuneMethod


@register_finetuning('bias', paper='Ben Zaken et al., ACL 2022')
class BiasTuning(FinetuneMethod):
    """Train the biases of all layers, those of norms included.

    BatchNorm keeps the statistics of the pretraining. Tables of relative positions are no biases in this sense.

    Paper: E. Ben Zaken et al., "BitFit: Simple Parameter-efficient Fine-tuning for Transformer-based Masked
    Language-models", ACL 2022, https://arxiv.org/abs/2106.10199
    """

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        found = [p for name, p in model.named_parameters() if name.endswith(('.bias', '_bias')) or name == 'bias']
        if not found:
            raise ValueError(f'{type(model).__name__} has no biases to tune; choose another method')
        return found

"""Linear probe."""

from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor

from .._registry import register_finetuning
from ._base import FinetuneMethod


@register_finetuning('head', paper='Alain and Bengio, ICLR workshop 2017')
class HeadTuning(FinetuneMethod):
    """Train the classifier alone. ``train_lt.py`` computes the features once and trains on them.

    Paper: G. Alain and Y. Bengio, "Understanding intermediate layers using linear classifier probes", ICLR workshop
    2017, https://arxiv.org/abs/1610.01644
    """

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        return ()

"""AdaptFormer, the tuning of LIFT."""

from collections.abc import Iterable

import torch.nn as nn
from torch import Tensor

from .._registry import register_finetuning
from .._validate import check_whole
from ..models.adaptformer import add_adaptformer
from ._base import FinetuneMethod, default_rank

CLASSES_PER_RANK = 2  # LIFT: r = C / (2 L)


@register_finetuning('adaptformer', paper='Chen et al., NeurIPS 2022')
class AdaptFormerTuning(FinetuneMethod):
    """Train a bottleneck beside the MLP of each transformer block, see :mod:`timm_lt.models.adaptformer`.

    Its layers do not merge into the weights of the network. A saved folder names ``adaptformer_network``, which
    ``timm.create_model`` and :func:`timm_lt.hub.load` build after ``import timm_lt``.

    Paper: S. Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022,
    https://arxiv.org/abs/2205.13535

    Args:
        rank: Channels of the bottleneck, >= 1. None follows LIFT: the power of two at or below ``C / (2 L)`` for C
            classes and L blocks, at least 1.
    """

    def __init__(self, *, rank: int | None = None) -> None:
        self.rank = None if rank is None else check_whole('rank', rank, 1)

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        branches = add_adaptformer(model, self.rank or default_rank(model, CLASSES_PER_RANK))
        # the stochastic depth inside a branch has no parameters
        return [p for branch in branches for p in branch.parameters()]

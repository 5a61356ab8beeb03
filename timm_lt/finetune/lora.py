"""Low-rank adaptation (LoRA).

Paper: E. Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", ICLR 2022,
https://arxiv.org/abs/2106.09685; rank by J.-X. Shi et al., "Long-Tail Learning with Foundation Model: Heavy
Fine-Tuning Hurts", ICML 2024, https://arxiv.org/abs/2309.10019, and its successor https://arxiv.org/abs/2504.13282.
Implements: Section 4.1, ``W x + (alpha / r) B A x`` with W frozen, A random and B zero at the start.
Source: written from the papers. Hugging Face peft is not used, because it renames the weights in the state dict. timm
could then load no checkpoint before a merge. peft also adapts a fused ``qkv`` layer as a whole, its keys included.
Differs from the papers / official code: convolutions are factorised too. A is a convolution of the same kernel to r
channels, B a 1x1 convolution.
"""

import math
from collections.abc import Iterable, Sequence
from fnmatch import fnmatchcase
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._classifier import find_classifiers
from .._registry import register_finetuning
from .._validate import check_range, check_whole
from ._base import FinetuneMethod, default_rank, layer_groups

QUERY_AND_VALUE = ('q', 'v', 'q_proj', 'v_proj', 'to_q', 'to_v')
CLASSES_PER_RANK = 4  # LIFT+: r = C / (4 L)


class LowRankLayer(nn.Module):
    """A layer whose frozen weight has a low-rank update; ``lora_down`` (parts r, ...) and ``lora_up`` (parts, rows, r).

    An existing layer becomes one in place by :func:`adapt` and keeps its name, weight and bias.
    """

    plain_class: type[nn.Module]
    weight: Tensor
    lora_down: nn.Parameter
    lora_up: nn.Parameter
    lora_rows: list[slice]
    lora_scale: float

    def up(self) -> Tensor:
        """``(alpha / r) B`` over all rows of the weight, (out, parts r); 0 for rows without an update."""
        parts, _, rank = self.lora_up.shape
        whole = self.lora_up.new_zeros(self.weight.shape[0], parts * rank)
        for i, rows in enumerate(self.lora_rows):
            whole[rows, i * rank:(i + 1) * rank] = self.lora_up[i] * self.lora_scale
        return whole

    @torch.no_grad()
    def fold(self) -> None:
        """Put the update into the weight; the layer is plain again."""
        update = torch.tensordot(self.up(), self.lora_down, 1)
        self.weight = nn.Parameter(self.weight + update)  # new, because another model may share the old one
        del self.lora_down, self.lora_up, self.lora_rows, self.lora_scale
        self.__class__ = self.plain_class  # type: ignore[assignment]


class LoRALinear(LowRankLayer, nn.Linear):
    """Linear layer with a low-rank update."""

    plain_class = nn.Linear

    def forward(self, input: Tensor) -> Tensor:
        return super().forward(input) + F.linear(F.linear(input, self.lora_down), self.up())


class LoRAConv2d(LowRankLayer, nn.Conv2d):
    """Convolution without groups, with a low-rank update."""

    plain_class = nn.Conv2d

    def forward(self, input: Tensor) -> Tensor:
        low = F.conv2d(input, self.lora_down, None, self.stride, self.padding, self.dilation)
        return super().forward(input) + F.conv2d(low, self.up()[:, :, None, None])


def adapt(layer: Any, rank: int, scale: float, rows: Sequence[slice]) -> list[nn.Parameter]:
    """Turn a plain layer into its low-rank kind in place; returns the new parameters."""
    weight = layer.weight
    size = len(range(*rows[0].indices(weight.shape[0])))
    down = weight.new_empty(len(rows) * rank, *weight.shape[1:])
    for part in down.split(rank):
        nn.init.kaiming_uniform_(part, a=math.sqrt(5))
    layer.__class__ = LoRALinear if isinstance(layer, nn.Linear) else LoRAConv2d
    layer.lora_down = nn.Parameter(down)
    layer.lora_up = nn.Parameter(weight.new_zeros(len(rows), size, rank))
    layer.lora_rows, layer.lora_scale = list(rows), scale
    return [layer.lora_down, layer.lora_up]


@register_finetuning('lora', paper='Hu et al., ICLR 2022')
class LoRATuning(FinetuneMethod):
    """Train low-rank updates of the attention's queries and values; without attention, of the blocks' layers.

    Transformers: the queries and values, also inside a fused ``qkv``. Networks without attention: every linear layer
    and every convolution without groups inside the blocks. In ConvNeXt these are the two of the MLP, in ResNet all of a
    block. :func:`timm_lt.finetune.merge` makes plain weights of them.

    Args:
        rank: Rank r of an update, >= 1. None: the power of two at or below ``C / (4 L)`` for C classes and L blocks, at
            least 1.
        alpha: Numerator of the factor ``alpha / r``, > 0; None: r.
        layers: Wildcards of the names of other layers to adapt, e.g. ``'*.mlp.fc*'``; None: as above.
    """

    def __init__(
            self,
            *,
            rank: int | None = None,
            alpha: float | None = None,
            layers: str | Sequence[str] | None = None,
    ) -> None:
        self.rank = None if rank is None else check_whole('rank', rank, 1)
        self.alpha = None if alpha is None else check_range('alpha', alpha, 0, low_open=True)
        self.layers = (layers,) if isinstance(layers, str) else layers

    def tune(self, model: nn.Module) -> Iterable[Tensor]:
        targets = self._targets(model)
        rank = self.rank or default_rank(model, CLASSES_PER_RANK)
        for name, layer in targets.items():
            smallest = min(layer.weight.shape[0], layer.weight[0].numel())
            if rank > smallest:
                raise ValueError(f'rank must be at most {smallest}, the rank of {name!r}, got {rank}')
        scale = (rank if self.alpha is None else self.alpha) / rank
        return [p for name, layer in targets.items() for p in adapt(layer, rank, scale, _rows(model, name, layer))]

    def _targets(self, model: nn.Module) -> dict[str, Any]:
        heads = find_classifiers(model)
        layers = {name: m for name, m in model.named_modules() if _is_adaptable(m) and m not in heads}
        if self.layers is not None:
            chosen = {n: m for n, m in layers.items() if any(fnmatchcase(n, wanted) for wanted in self.layers)}
            reason = f'no linear layer and no convolution without groups is named {" or ".join(self.layers)}'
        else:
            chosen = {n: m for n, m in layers.items() if n.rpartition('.')[2] in ('qkv', *QUERY_AND_VALUE)}
            if not chosen and not any('attention' in type(m).__name__.lower() for m in model.modules()):
                inside = {name.rpartition('.')[0] for group in layer_groups(model) for name in group}
                chosen = {n: m for n, m in layers.items() if n in inside}
            reason = 'no layer of its queries and values was found'
        if not chosen:
            raise ValueError(f'lora cannot adapt {type(model).__name__}: {reason}; name layers, or choose bias or norm')
        for name in chosen:
            attention: Any = model.get_submodule(name.rpartition('.')[0])
            # BEiT, EVA and Swin V2 with a bias of queries and values alone hand the weight to a function
            if getattr(attention, 'q_bias', None) is not None and not getattr(attention, 'qkv_bias_separate', False):
                raise ValueError(
                    f'lora cannot adapt {type(model).__name__}: its attention uses the weight of {name!r} without '
                    f'calling the layer; choose other layers, or bias, norm or adaptformer')
        return chosen


def _is_adaptable(layer: nn.Module) -> bool:
    """Whether the layer is a linear layer or a convolution of torch itself, whose update has low rank."""
    return type(layer) is nn.Linear or (
        type(layer) is nn.Conv2d and layer.groups == 1 and layer.padding_mode == 'zeros')


def _rows(model: nn.Module, name: str, layer: Any) -> list[slice]:
    """Rows of the weight that get an update: queries and values of a fused layer, else all."""
    out = layer.weight.shape[0]
    attention = model.get_submodule(name.rpartition('.')[0])
    if name.rpartition('.')[2] != 'qkv' or out % 3 or getattr(attention, 'head_first', False):
        return [slice(0, out)]  # also where each head has its queries, keys and values side by side
    return [slice(0, out // 3), slice(out // 3 * 2, out)]

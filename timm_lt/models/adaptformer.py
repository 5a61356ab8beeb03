"""AdaptFormer: a bottleneck beside the MLP of each transformer block, and networks that have it.

Paper: S. Chen et al., "AdaptFormer: Adapting Vision Transformers for Scalable Visual Recognition", NeurIPS 2022,
https://arxiv.org/abs/2205.13535; in the form of J.-X. Shi et al., "Long-Tail Learning with Foundation Model: Heavy
Fine-Tuning Hurts", ICML 2024, https://arxiv.org/abs/2309.10019.
Implements: ``x + DropPath(MLP branch(x) + s up(ReLU(down(LayerNorm(x)))))`` with ``up`` zero and ``s`` 1 at the start.
Source: written from the papers.
Differs from the papers / official code: the first paper fixes ``s`` at 0.1. ``s`` is trained here, as in the second.
"""

import math
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.models import get_model_args
from timm.models.beit import Block as BeitBlock
from timm.models.eva import EvaBlock
from timm.models.swin_transformer import SwinTransformerBlock
from timm.models.vision_transformer import Block
from torch import Tensor

from .._capture import InputTap
from .._classifier import find_classifier
from .._timm_hooks import register_network
from ._saved import is_saved, name_and_load
from .cosine_classifier import CosineClassifier
from .cosine_network import cosine_network

__all__ = ['AdaptedBranch', 'adaptformer_network', 'adaptformer_network_args', 'add_adaptformer']

# blocks of the form x + drop_path2(branch(norm2(x)))
BLOCKS = (Block, BeitBlock, EvaBlock, SwinTransformerBlock)


class AdaptedBranch(nn.Module):
    """The stochastic depth at the end of a block's MLP branch, with the bottleneck's output added before it.

    The input of the bottleneck is that of the block's ``norm2``, noted by a hook.

    Args:
        drop_path: The stochastic depth of the block.
        dim: Channels D of the block.
        rank: Channels of the bottleneck, >= 1.
    """

    def __init__(
            self,
            drop_path: nn.Module,
            dim: int,
            rank: int,
            device: torch.device | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        self.drop_path = drop_path
        self.norm = nn.LayerNorm(dim, **dd)
        self.down = nn.Linear(dim, rank, **dd)
        self.up = nn.Linear(rank, dim, **dd)
        self.scale = nn.Parameter(torch.ones((), **dd))
        nn.init.kaiming_uniform_(self.down.weight, a=math.sqrt(5))
        for zero in (self.down.bias, self.up.weight, self.up.bias):
            nn.init.zeros_(zero)
        self.tap = InputTap()  # hook of ``norm2``

    def forward(self, branch: Tensor) -> Tensor:
        (residual,) = self.tap.take()
        return self.drop_path(branch + self.scale * self.up(self.down(self.norm(residual)).relu()))


def add_adaptformer(model: nn.Module, rank: int) -> list[AdaptedBranch]:
    """Give every transformer block of a timm model a bottleneck; the output is the same until it is trained.

    Args:
        model: A ViT, DeiT, BEiT, EVA (DINOv3) or Swin of timm; changed in place.
        rank: Channels of the bottleneck, >= 1.

    Returns:
        The new layers.

    Raises:
        ValueError: If the model has no block of a known form, or has bottlenecks already.
    """
    blocks: list[Any] = [m for m in model.modules() if isinstance(m, BLOCKS)]
    if not blocks:
        raise ValueError(
            f'adaptformer cannot adapt {type(model).__name__}: it needs transformer blocks with a norm before the MLP, '
            f'those of ViT, DeiT, BEiT, EVA or Swin (not Swin V2); choose lora, bias or norm')
    if adapted_branches(model):
        raise ValueError(f'{type(model).__name__} has the layers of adaptformer already')
    for block in blocks:
        weight = block.norm2.weight
        branch = AdaptedBranch(block.drop_path2, weight.numel(), rank, device=weight.device, dtype=weight.dtype)
        block.drop_path2 = branch.train(block.training)
        block.norm2.register_forward_pre_hook(branch.tap)
    return adapted_branches(model)


def adapted_branches(model: nn.Module) -> list[AdaptedBranch]:
    """The layers that :func:`add_adaptformer` added."""
    return [m for m in model.modules() if isinstance(m, AdaptedBranch)]


@register_network
def adaptformer_network(
        pretrained: bool = False,
        pretrained_cfg: Any = None,
        network: str = 'vit_tiny_patch16_224',
        adaptformer_rank: int = 8,
        cosine_scale: float | None = None,
        learnable_scale: bool = False,
        pretrained_cfg_overlay: dict[str, Any] | None = None,
        cache_dir: str | None = None,
        pretrained_model_args: dict[str, Any] | None = None,
        **kwargs: Any,
) -> nn.Module:
    """The network ``network`` of timm with the layers of AdaptFormer, as a saved folder names it.

    Args:
        pretrained: Load the weights of a saved folder, the added layers included. Without a folder, load timm's weights
            of ``network``.
        pretrained_cfg: Of a saved folder; given by ``timm.create_model``.
        network: Name of the network.
        adaptformer_rank: Channels of the bottlenecks, >= 1.
        cosine_scale: Scale of a cosine classifier; None: a linear classifier.
        learnable_scale: See :class:`timm_lt.models.CosineClassifier`.
        pretrained_cfg_overlay, cache_dir, pretrained_model_args: Given by ``timm.create_model``.
        **kwargs: Arguments of ``network``.

    Raises:
        ValueError: If the network has no block of a known form, or only its intermediate features are asked for.
    """
    if kwargs.get('features_only'):
        raise ValueError('adaptformer_network has no features_only; use its forward_intermediates()')
    saved = is_saved(pretrained_cfg)
    kwargs |= {'pretrained': pretrained and not saved, 'cache_dir': cache_dir,
               'pretrained_cfg_overlay': pretrained_cfg_overlay}
    model: Any
    if cosine_scale is None:
        model = timm.create_model(network, **kwargs)
    else:
        model = cosine_network(
            network=network, cosine_scale=cosine_scale, learnable_scale=learnable_scale, **kwargs)
    add_adaptformer(model, adaptformer_rank)
    return name_and_load(
        model, 'adaptformer_network', pretrained_cfg, pretrained=pretrained, in_chans=kwargs.get('in_chans', 3),
        cache_dir=cache_dir)


def adaptformer_network_args(model: nn.Module) -> dict[str, Any]:
    """Arguments that rebuild a network of timm with the layers of AdaptFormer; empty for others."""
    branches = adapted_branches(model)
    config: Any = getattr(model, 'pretrained_cfg', {})
    if not branches or config.get('architecture') == 'adaptformer_network':  # that one has its arguments
        return {}
    args = {'network': get_model_args(model).get('network', config['architecture']),
            'adaptformer_rank': branches[0].down.out_features}
    head = find_classifier(model)
    if isinstance(head, CosineClassifier):
        args |= {'cosine_scale': head.initial_scale, 'learnable_scale': head.log_scale is not None}
    return args

"""ResNets for 32x32 images, as the long-tailed literature uses them.

Paper: K. He et al., "Deep Residual Learning for Image Recognition", CVPR 2016, https://arxiv.org/abs/1512.03385
Implements: Section 4.2, "CIFAR-10 and Analysis": 3x3 stem, 3 stages of n basic blocks, 6n + 2 layers, 16-32-64
channels. Shortcuts are of option A: every second pixel, new channels zero, no parameters.

The papers call three different networks "ResNet-32". Parameters at 100 classes:

=====================  ===========  =============================================================
``resnet32_cifar``        470,004   He et al., most CIFAR-LT papers (``resnet20_cifar``: 275,572)
``resnet32_cifar_x4``   7,409,316   channels times four, 64-128-256
``resnet34_cifar``     21,328,292   timm's ResNet-34 (option B), 3x3 stem of stride 1, no max-pool
=====================  ===========  =============================================================

Source: written from the paper; interfaces follow timm's models.
Differs from the paper / official code: optional norm layer, dropout before the classifier and cosine classifier.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from timm.layers import GroupNorm, SelectAdaptivePool2d, get_device_dtype, get_norm_layer
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs
from timm.models.resnet import BasicBlock, ResNet
from torch import Tensor

from .._timm_hooks import register_network
from .cosine_classifier import create_head

__all__ = [
    'CifarResNet', 'CifarResNet34', 'resnet20_cifar', 'resnet32_cifar', 'resnet32_cifar_x4', 'resnet34_cifar',
]

NormLayer = str | Callable[..., nn.Module]


def _group_norm(channels: int, **kwargs: Any) -> nn.Module:
    # timm's default of 32 groups does not divide 16 channels; four channels a group do everywhere here
    return GroupNorm(channels, num_groups=min(32, max(1, channels // 4)), **kwargs)


def resolve_norm_layer(norm_layer: NormLayer) -> Callable[..., nn.Module]:
    """Norm layer by timm's name; 'groupnorm' has 4 channels a group, 32 groups at most."""
    if not isinstance(norm_layer, str):
        return norm_layer
    if norm_layer.replace('_', '').lower() == 'groupnorm':
        return _group_norm
    try:
        layer = get_norm_layer(norm_layer)
    except KeyError:
        layer = None
    if layer is None:
        raise ValueError(
            f"norm_layer {norm_layer!r} is unknown; use a name that timm knows, such as 'batchnorm2d', 'groupnorm', "
            f"'groupnorm1' or 'layernorm2d'")
    return layer


def _take_indices(indices: int | list[int] | None, count: int = 4) -> list[int]:
    """Positions among ``count`` features: the last n for an int, all for None, negative ones from the end."""
    last = count if indices is None else indices
    positions = range(count - last, count) if isinstance(last, int) else last
    taken = [i + count if i < 0 else i for i in positions]
    if not taken or min(taken) < 0 or max(taken) >= count:
        raise ValueError(f'feature indices must be in [{-count}, {count - 1}], got {indices}')
    return taken


class OptionABlock(nn.Module):
    """Two 3x3 convolutions and a shortcut without parameters."""

    def __init__(self, in_chs: int, out_chs: int, stride: int, norm_layer: Callable[..., nn.Module], **dd: Any) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_chs, out_chs, 3, stride=stride, padding=1, bias=False, **dd)
        self.bn1 = norm_layer(out_chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = nn.Conv2d(out_chs, out_chs, 3, padding=1, bias=False, **dd)
        self.bn2 = norm_layer(out_chs, **dd)
        self.act2 = nn.ReLU(inplace=True)
        self.stride = stride
        self.new_chs = out_chs - in_chs

    def forward(self, x: Tensor) -> Tensor:
        shortcut = x
        if self.stride > 1:
            shortcut = shortcut[:, :, ::self.stride, ::self.stride]
        if self.new_chs > 0:
            before = self.new_chs // 2
            shortcut = F.pad(shortcut, [0, 0, 0, 0, before, self.new_chs - before])
        x = self.act1(self.bn1(self.conv1(x)))
        x = self.bn2(self.conv2(x))
        return self.act2(x + shortcut)


class CifarResNet(nn.Module):
    """ResNet of 3 stages for small images, He et al. Section 4.2.

    Args:
        depth: Blocks per stage, n.
        channels: Channels of the three stages; the stem has those of the first.
        num_classes: Classes; 0 for no classifier.
        in_chans: Channels of the images.
        global_pool: timm's pooling name; '' for none.
        norm_layer: Class or timm name, e.g. 'groupnorm' for a network whose samples do not depend on one another.
        drop_rate: Dropout before the classifier.
        cosine_scale: None for a linear classifier; a number for a cosine classifier of this scale.
    """

    def __init__(
            self,
            depth: int,
            channels: tuple[int, int, int] = (16, 32, 64),
            num_classes: int = 100,
            in_chans: int = 3,
            global_pool: str = 'avg',
            norm_layer: NormLayer = 'batchnorm2d',
            drop_rate: float = 0.,
            cosine_scale: float | None = None,
            device: torch.device | str | None = None,
            dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        dd: dict[str, Any] = {'device': device, 'dtype': dtype}
        norm_layer = resolve_norm_layer(norm_layer)
        self.num_classes = num_classes
        self.in_chans = in_chans
        self.drop_rate = drop_rate
        self.cosine_scale = cosine_scale
        self.grad_checkpointing = False

        chs = channels[0]
        self.conv1 = nn.Conv2d(in_chans, chs, 3, padding=1, bias=False, **dd)
        self.bn1 = norm_layer(chs, **dd)
        self.act1 = nn.ReLU(inplace=True)
        self.feature_info: list[dict[str, Any]] = [dict(num_chs=chs, reduction=1, module='act1')]
        stages = []
        for i, out_chs in enumerate(channels):
            blocks = []
            for b in range(depth):
                blocks.append(OptionABlock(chs, out_chs, 2 if i and b == 0 else 1, norm_layer, **dd))
                chs = out_chs
            stages.append(nn.Sequential(*blocks))
            self.feature_info.append(dict(num_chs=chs, reduction=2 ** i, module=f'layer{i + 1}'))

        self.layer1, self.layer2, self.layer3 = stages
        self.num_features = chs
        self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc = create_head(self.head_hidden_size, num_classes, cosine_scale, **dd)
        self.init_weights()

    @torch.jit.ignore
    def init_weights(self) -> None:
        """He et al. initialisation of the convolutions; the classifier keeps its own."""
        for m in self.modules():
            if isinstance(m, nn.Conv2d):
                nn.init.kaiming_normal_(m.weight, mode='fan_out', nonlinearity='relu')

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'fc.log_scale'}

    @torch.jit.ignore
    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return dict(stem=r'^conv1|^bn1', blocks=r'^layer(\d+)' if coarse else r'^layer(\d+)\.(\d+)')

    @torch.jit.ignore
    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    @torch.jit.ignore
    def get_classifier(self, name_only: bool = False) -> str | nn.Module:
        return 'fc' if name_only else self.fc

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of the same kind (linear or cosine)."""
        dd = get_device_dtype(self)
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = SelectAdaptivePool2d(pool_type=global_pool, flatten=bool(global_pool))
        self.head_hidden_size = self.num_features * self.global_pool.feat_mult()
        self.fc = create_head(self.head_hidden_size, num_classes, self.cosine_scale, **dd).train(self.training)

    def forward_intermediates(
            self,
            x: Tensor,
            indices: int | list[int] | None = None,
            norm: bool = False,
            stop_early: bool = False,
            output_fmt: str = 'NCHW',
            intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Features of the stem and the stages, as timm's models give them."""
        if output_fmt != 'NCHW':
            raise ValueError(f"output_fmt must be 'NCHW', got {output_fmt!r}")
        take_indices = _take_indices(indices)
        x = self.act1(self.bn1(self.conv1(x)))
        intermediates = [x] if 0 in take_indices else []
        stages = [self.layer1, self.layer2, self.layer3]
        for i, stage in enumerate(stages[:max(take_indices)] if stop_early else stages, start=1):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing and not torch.jit.is_scripting() else stage(x)
            if i in take_indices:
                intermediates.append(x)
        return intermediates if intermediates_only else (x, intermediates)

    def prune_intermediate_layers(
            self,
            indices: int | list[int] = 1,
            prune_norm: bool = False,
            prune_head: bool = True,
    ) -> list[int]:
        """Drop the stages after the last index and, with them, the head."""
        take_indices = _take_indices(indices)
        max_index = max(take_indices)
        for i in range(max_index + 1, 4):
            setattr(self, f'layer{i}', nn.Sequential())
        if max_index < 3:
            self.num_features = self.feature_info[max_index]['num_chs']
        if prune_head or max_index < 3:
            self.reset_classifier(0, '')
        return take_indices

    def forward_features(self, x: Tensor) -> Tensor:
        x = self.act1(self.bn1(self.conv1(x)))
        if self.grad_checkpointing and not torch.jit.is_scripting():
            x = checkpoint_seq([self.layer1, self.layer2, self.layer3], x, flatten=True)
        else:
            x = self.layer1(x)
            x = self.layer2(x)
            x = self.layer3(x)
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, p=float(self.drop_rate), training=self.training)
        return x if pre_logits else self.fc(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


class CifarResNet34(ResNet):
    """timm's ResNet-34 whose stem keeps the resolution: 3x3 convolution of stride 1, no max-pool.

    Args:
        norm_layer: See :class:`CifarResNet`.
        cosine_scale: See :class:`CifarResNet`.
        **kwargs: Arguments of timm's ``ResNet``.
    """

    def __init__(
            self,
            norm_layer: NormLayer = 'batchnorm2d',
            cosine_scale: float | None = None,
            **kwargs: Any,
    ) -> None:
        block: Any = BasicBlock  # timm annotates this class as an instance
        super().__init__(block, (3, 4, 6, 3), norm_layer=resolve_norm_layer(norm_layer), **kwargs)
        stem: Any = self.conv1
        conv = nn.Conv2d(
            stem.in_channels, stem.out_channels, 3, padding=1, bias=False, device=stem.weight.device,
            dtype=stem.weight.dtype)
        nn.init.kaiming_normal_(conv.weight, mode='fan_out', nonlinearity='relu')
        # timm annotates both by their form in deeper stems
        self.conv1 = conv  # type: ignore[assignment]
        self.maxpool = nn.Identity()  # type: ignore[assignment]
        for i, info in enumerate(self.feature_info):
            info['reduction'] = 2 ** max(0, i - 1)
        self.cosine_scale = cosine_scale
        if cosine_scale is not None:
            self.reset_classifier(self.num_classes)

    @torch.jit.ignore
    def no_weight_decay(self) -> set[str]:
        return {'fc.log_scale'}

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A fresh classifier of the same kind (linear or cosine)."""
        super().reset_classifier(num_classes, global_pool)
        if self.cosine_scale is not None:
            self.fc = create_head(
                self.head_hidden_size, num_classes, self.cosine_scale, **get_device_dtype(self)).train(self.training)


def _cfg(**kwargs: Any) -> dict[str, Any]:
    return {
        'url': '', 'num_classes': 100, 'input_size': (3, 32, 32), 'pool_size': (8, 8),
        'crop_pct': 1.0, 'interpolation': 'bicubic',
        # per-channel statistics of the CIFAR-10 training images, which the literature uses for CIFAR-100 too
        'mean': (0.4914, 0.4822, 0.4465), 'std': (0.2023, 0.1994, 0.2010),
        'first_conv': 'conv1', 'classifier': 'fc', 'license': 'apache-2.0', **kwargs,
    }


default_cfgs = generate_default_cfgs({
    'resnet20_cifar': _cfg(),
    'resnet32_cifar': _cfg(),
    'resnet32_cifar_x4': _cfg(),
    'resnet34_cifar': _cfg(pool_size=(4, 4)),
})


def _create(variant: str, pretrained: bool, model_cls: Callable[..., nn.Module], num_taps: int, **kwargs: Any) -> Any:
    return build_model_with_cfg(
        model_cls, variant, pretrained, feature_cfg=dict(out_indices=tuple(range(num_taps))), **kwargs)


@register_network
def resnet20_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-20 of He et al. for CIFAR."""
    return _create('resnet20_cifar', pretrained, partial(CifarResNet, depth=3), 4, **kwargs)


@register_network
def resnet32_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 of He et al. for CIFAR."""
    return _create('resnet32_cifar', pretrained, partial(CifarResNet, depth=5), 4, **kwargs)


@register_network
def resnet32_cifar_x4(pretrained: bool = False, **kwargs: Any) -> CifarResNet:
    """ResNet-32 for CIFAR with four times the channels, 64-128-256."""
    model_cls = partial(CifarResNet, depth=5, channels=(64, 128, 256))
    return _create('resnet32_cifar_x4', pretrained, model_cls, 4, **kwargs)


@register_network
def resnet34_cifar(pretrained: bool = False, **kwargs: Any) -> CifarResNet34:
    """timm's ResNet-34 with a stem for small images."""
    return _create('resnet34_cifar', pretrained, CifarResNet34, 5, **kwargs)

"""Whether a network keeps the channels of a pixel together in memory (channels-last)."""

import torch
import torch.nn as nn


def wants_channels_last(asked: bool | None, model: nn.Module, device: torch.device, precision: str) -> bool:
    """Whether ``model`` should be channels-last; ``asked`` decides, else the faster format.

    Faster networks, by step time as a multiple of contiguous fp32 (one CPU thread, in turns, medians).
    ``resnet32_cifar``: 0.77 against 1 in fp32 and 0.51 against 0.57 in bf16. ``resnet18`` at 64 pixels: 0.95 against 1
    and 0.61 against 0.63. ``test_resnet``: 0.75 against 1 and 0.53 against 0.82. ``mobilenetv3_small_100``, with
    convolutions in groups, loses: 1.21, and 1.73 against 1.43. So networks of dense convolutions gain on a CPU. On a
    GPU they do in bf16 and fp16, where cuDNN works on channels-last tensors; in fp32 they stay contiguous.

    Args:
        asked: ``--channels-last``; None decides by the rule.
        model: The network.
        device: Where it is trained.
        precision: Accelerate's mixed precision, e.g. ``'bf16'``.
    """
    if asked is not None:
        return asked
    gains = device.type == 'cpu' or (device.type == 'cuda' and precision in ('bf16', 'fp16'))
    return gains and is_dense_convolutional(model)


def is_dense_convolutional(model: nn.Module) -> bool:
    """Whether 2-D convolutions, none of them in groups, hold most of the parameters."""
    convolutions = [m for m in model.modules() if isinstance(m, nn.Conv2d)]
    held = sum(m.weight.numel() for m in convolutions)
    return all(m.groups == 1 for m in convolutions) and 2 * held > sum(p.numel() for p in model.parameters())


def is_channels_last(model: nn.Module) -> bool:
    """Whether a convolution of the network is stored channels-last."""
    return any(
        m.weight.is_contiguous(memory_format=torch.channels_last) and not m.weight.is_contiguous()
        for m in model.modules() if isinstance(m, nn.Conv2d))

"""The module that is exported, and the facts that go with it."""

import dataclasses
from typing import Any

import torch
import torch.nn as nn
from timm.data import resolve_data_config
from torch import Tensor

from .._version import __version__
from ..hub import Checkpoint
from ..posthoc import PostHoc

__all__ = ['ExportedNetwork', 'facts_of']

INPUT, OUTPUTS = 'images', ('scores', 'probabilities')


class ExportedNetwork(nn.Module):
    """A network with its correction.

    Args:
        model: Network, in evaluation mode.
        posthoc: Correction that works for a single image, or None.
    """

    def __init__(self, model: nn.Module, posthoc: PostHoc | None = None) -> None:
        super().__init__()
        self.model = model
        self.posthoc = posthoc

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Corrected scores and probabilities, both (B, C), of normalised images (B, channels, H, W)."""
        logits = self.model(images).float()
        scores = logits if self.posthoc is None else self.posthoc(logits)
        return scores, scores.softmax(1)


def facts_of(checkpoint: Checkpoint, posthoc: PostHoc | None) -> dict[str, Any]:
    """Facts that a program needs to use an exported file.

    Args:
        checkpoint: The checkpoint.
        posthoc: Correction in the file, or None.

    Returns:
        ``class_names`` in label order (None where the checkpoint has none), ``correction`` and ``architecture``.
        ``open_set`` is a threshold of the network's plain logits, or None. The preparation of images: ``input_size``,
        ``mean``, ``std``, ``interpolation``, ``crop_pct``, ``crop_mode``.
    """
    config = resolve_data_config({}, model=checkpoint.model)
    return {
        'class_names': checkpoint.class_names,
        'correction': None if posthoc is None else posthoc.label,
        'open_set': None if checkpoint.open_set is None else dataclasses.asdict(checkpoint.open_set),
        'architecture': checkpoint.architecture,
        **{name: config[name] for name in ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')},
        'input': f'{INPUT}: float32 (batch, channels, height, width), (pixels / 255 - mean) / std',
        'outputs': list(OUTPUTS),
        'versions': {'timm_lt': __version__, 'torch': torch.__version__},
    }

"""Comparison of an exported file with the network in Python."""

from collections.abc import Callable

import torch
from torch import Tensor

from .network import OUTPUTS, ExportedNetwork

__all__ = ['ExportMismatch', 'largest_difference']


class ExportMismatch(RuntimeError):
    """An exported file gives other scores than the network; the message says by how much."""


@torch.inference_mode()
def largest_difference(
        network: ExportedNetwork,
        run: Callable[[Tensor], tuple[Tensor, Tensor]],
        images: Tensor,
        tolerance: float,
) -> float:
    """Largest absolute difference of scores and probabilities, over all images together and the first alone.

    Args:
        network: The network in Python.
        run: Runs the exported file.
        images: Normalised images (B, channels, H, W).
        tolerance: Largest difference allowed.

    Raises:
        ExportMismatch: If a difference is larger.
    """
    largest = 0.0
    for batch in (images, images[:1]):
        for name, expected, found in zip(OUTPUTS, network(batch), run(batch)):
            if found.shape != expected.shape:
                raise ExportMismatch(
                    f'the exported {name} have the shape {tuple(found.shape)}, those of the network '
                    f'{tuple(expected.shape)}, for {len(batch)} images')
            difference = float((found - expected).abs().max())
            if not difference <= tolerance:  # also NaN
                raise ExportMismatch(
                    f'the exported {name} differ from those of the network by {difference:g}, more than {tolerance:g}')
            largest = max(largest, difference)
    return largest

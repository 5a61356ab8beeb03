"""Predictions of single images: checks, ranks and confidences, and the gather over processes.

One rule holds in every metric:

- A tie goes to the class of the lower number, as ``argmax`` resolves it.
- An image is *not finite* if a score is NaN or ``+inf``, or if all scores are ``-inf``. It counts as wrong, belongs to
  no predicted class and has no confidence. A score of ``-inf`` beside finite ones is a probability of 0.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..._labels import read_labels

CHUNK_ELEMENTS = 1 << 20  # logits read at a time: bounds the working memory, whatever the size of the test set


def check_predictions(logits: Any, targets: Any) -> tuple[Tensor, Tensor]:
    """Logits (N, C) and int64 targets (N,) as tensors.

    Raises:
        ValueError: If a shape or type is wrong, a target is outside [0, C), or there is no image.
    """
    logits = torch.as_tensor(logits).detach()
    if not isinstance(targets, Tensor):
        targets = read_labels(targets, allow_empty=True)
    targets = targets.detach()
    if logits.ndim != 2 or not logits.is_floating_point():
        raise ValueError(f'logits must be floats of shape (N, C), got {logits.dtype} of shape {tuple(logits.shape)}')
    if targets.is_floating_point() or targets.dtype == torch.bool or targets.shape != logits.shape[:1]:
        raise ValueError(
            f'targets must be whole numbers of shape ({logits.shape[0]},), '
            f'got {targets.dtype} of shape {tuple(targets.shape)}')
    if len(targets) == 0:
        raise ValueError('there is no test image: logits and targets are empty')
    targets = targets.long()
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= logits.shape[1]:
        raise ValueError(
            f'targets must be in [0, {logits.shape[1] - 1}], the columns of the logits, '
            f'got targets from {low} to {high}; does the dataset have the classes of the model?')
    return logits, targets


def finite_rows(logits: Tensor) -> Tensor:
    """Mask (N,) of the images that are finite, see the module."""
    return torch.isfinite(logits.amax(1))  # the maximum is NaN if any entry is


@torch.no_grad()
def predict(logits: Tensor, targets: Tensor) -> dict[str, Tensor]:
    """Predicted class, rank and confidence of each image, on the CPU, computed in blocks of rows.

    Args:
        logits: (N, C).
        targets: (N,), int64.

    Returns:
        A dictionary with

        - ``predicted``: (N,), -1 where the image is not finite;
        - ``rank``: (N,), the place of the true class, 0 for the highest score, C + 5 where the image is not finite;
        - ``confidence``: (N,), float64, the largest softmax value, NaN where the image is not finite.
    """
    num_images, num_classes = logits.shape
    rows = max(1, CHUNK_ELEMENTS // num_classes)
    targets = targets.to(logits.device)
    column = torch.arange(num_classes, device=logits.device)
    # filled in place: lists of small results between large temporaries fragment the heap
    predicted, rank = torch.empty_like(targets), torch.empty_like(targets)
    confidence = torch.empty(num_images, dtype=torch.float64)
    for start in range(0, num_images, rows):
        block = slice(start, start + rows)
        z = logits[block] if logits.dtype == torch.float64 else logits[block].float()
        y = targets[block, None]
        own = z.gather(1, y)
        top, best = z.max(1)
        place = (z > own).sum(1) + ((z == own) & (column < y)).sum(1)
        broken = ~torch.isfinite(top)
        predicted[block] = best.masked_fill(broken, -1)
        rank[block] = place.masked_fill(broken, num_classes + 5)
        odds = (z - top[:, None]).exp().sum(1).double()
        confidence[block] = (1 / odds).masked_fill(broken, torch.nan).cpu()
    return {'predicted': predicted.cpu(), 'rank': rank.cpu(), 'confidence': confidence}


def gather_predictions(
        logits: Tensor | Sequence[Tensor],
        targets: Tensor | Sequence[Tensor],
        accelerator: Any = None,
        *,
        num_valid: int | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits and targets of all processes, on the CPU, with one gather at the end.

    Each process keeps the results of its batches in a list on the device; nothing is synchronised per batch. Processes
    may hold different numbers of images. All processes must call this, and all receive the result.

    Args:
        logits: This process's logits, (n, C), or a list of them.
        targets: This process's targets, (n,), or a list of them.
        accelerator: accelerate's ``Accelerator``; None for one process.
        num_valid: Real images of this process. Later ones are padding of the sampler and are dropped (timm's
            ``evaluation_sample_limit(loader)``).

    Returns:
        Logits (N, C) and targets (N,), ordered by process.
    """
    logits = logits if isinstance(logits, Tensor) else torch.cat(list(logits))
    targets = targets if isinstance(targets, Tensor) else torch.cat(list(targets))
    if num_valid is not None:
        logits, targets = logits[:num_valid], targets[:num_valid]
    logits, targets = logits.detach(), targets.detach()
    if accelerator is None or accelerator.num_processes == 1:
        return logits.cpu(), targets.cpu()
    length = torch.tensor([len(targets)], device=targets.device)
    lengths = accelerator.gather(length).tolist()
    longest = max(lengths)
    if len(targets) < longest:
        pad = longest - len(targets)
        logits = torch.cat([logits, logits.new_zeros(pad, logits.shape[1])])
        targets = torch.cat([targets, targets.new_zeros(pad)])
    all_logits: Tensor = accelerator.gather(logits.contiguous()).cpu()
    all_targets: Tensor = accelerator.gather(targets.contiguous()).cpu()
    if min(lengths) == longest:
        return all_logits, all_targets
    keep = torch.cat([torch.arange(n) + k * longest for k, n in enumerate(lengths)])
    return all_logits[keep], all_targets[keep]

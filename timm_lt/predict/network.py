"""Predictions of a checkpoint, image by image in the order of the source."""

from collections.abc import Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from timm.data import resolve_data_config
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._validate import check_whole
from ..data import ImageReadError, eval_transform
from ..data.augment import BatchAugment
from ..hub import Checkpoint
from .sources import ImageSource

__all__ = ['Prediction', 'predict_images']

UNKNOWN = 'unknown'  # label of an image that lies below the open-set threshold
NOT_FINITE = 'the network gives scores that are not finite'


@dataclass(frozen=True)
class Prediction:
    """The prediction of one image.

    Attributes:
        path: Name of the image in its source.
        label: Name of the predicted class; ``'unknown'`` below the open-set threshold of the checkpoint; empty where
            there is an error.
        labels: Names of the most probable classes, the most probable first.
        probabilities: Their probabilities, in [0, 1].
        error: Reason why the image has no prediction, or empty.
    """
    path: str
    label: str = ''
    labels: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    error: str = ''


def predict_images(
        checkpoint: Checkpoint,
        source: ImageSource,
        *,
        top_k: int = 5,
        start: int = 0,
        batch_size: int = 128,
        workers: int = 0,
        amp_dtype: torch.dtype | None = None,
        use_posthoc: bool = True,
) -> Iterator[Prediction]:
    """Predictions in the order of the source; a few batches are in memory at a time.

    An image that cannot be read has a prediction with an error. The stored correction is applied, unless it is
    transductive, because that needs all images at once.

    Args:
        checkpoint: Network and correction, on the device that computes.
        source: The images.
        top_k: Classes to name, at most as many as there are.
        start: Images to pass over.
        batch_size: Images of a step.
        workers: Processes that read images; 0: this one.
        amp_dtype: Type of the forward pass under autocast; None: that of the weights.
        use_posthoc: Apply the correction.

    Raises:
        ValueError: If a number is out of range.
    """
    check_whole('top_k', top_k, 1)
    check_whole('start', start, 0)
    check_whole('batch_size', batch_size, 1)
    check_whole('workers', workers, 0)
    device = next(checkpoint.model.parameters()).device
    config = resolve_data_config({}, model=checkpoint.model)
    transform = eval_transform(
        config['input_size'], config['interpolation'], config['crop_pct'], config['crop_mode'])
    loader = DataLoader(
        _Images(source, transform, 'L' if config['input_size'][0] == 1 else 'RGB'),
        batch_sampler=_Batches(source, start, batch_size), num_workers=workers, collate_fn=_collate,
        pin_memory=device.type == 'cuda', generator=torch.Generator())
    normalize = BatchAugment(config['mean'], config['std']).normalize
    names = checkpoint.class_names or [str(c) for c in range(checkpoint.num_classes)]
    precision = nullcontext() if amp_dtype is None else torch.autocast(device.type, amp_dtype)
    for paths, images, errors in loader:
        found: Iterator[Prediction] = iter(())
        if len(images):
            with torch.inference_mode(), precision:
                logits = checkpoint.model(normalize(images.to(device, non_blocking=True)))
            readable = [path for path, error in zip(paths, errors) if not error]
            scores = _scores(checkpoint, logits.float(), use_posthoc)
            found = _named(readable, scores, names, top_k, _is_known(checkpoint, logits))
        yield from (Prediction(path, error=error) if error else next(found) for path, error in zip(paths, errors))


@torch.inference_mode()
def _scores(checkpoint: Checkpoint, logits: Tensor, use_posthoc: bool) -> Tensor:
    posthoc = checkpoint.posthoc if use_posthoc else None
    return logits if posthoc is None or posthoc.transductive else posthoc(logits)


@torch.inference_mode()
def _is_known(checkpoint: Checkpoint, logits: Tensor) -> list[bool]:
    """Whether each image reaches the open-set threshold, which is one of the plain logits."""
    if checkpoint.open_set is None:
        return [True] * len(logits)
    from ..evaluate import open_set_scores  # imports what reports need
    scores = open_set_scores(logits.float(), score=checkpoint.open_set.score)
    return (scores >= checkpoint.open_set.threshold).tolist()


@torch.inference_mode()
def _named(
        paths: Sequence[str], scores: Tensor, names: Sequence[str], top_k: int, known: Sequence[bool],
) -> Iterator[Prediction]:
    """Predictions from scores (B, C)."""
    top = scores.softmax(1).topk(min(top_k, len(names)))
    for path, values, classes, is_known in zip(paths, top.values.tolist(), top.indices.tolist(), known):
        if values[0] != values[0]:  # NaN
            yield Prediction(path, error=NOT_FINITE)
            continue
        labels = tuple(names[c] for c in classes)
        yield Prediction(path, labels[0] if is_known else UNKNOWN, labels, tuple(values))


class _Batches:
    """Batches of names and keys of a source, made while they are asked for."""

    def __init__(self, source: ImageSource, start: int, size: int) -> None:
        self.source, self.start, self.size = source, start, size

    def __iter__(self) -> Iterator[list[tuple[str, Any]]]:
        entries = islice(self.source.entries(), self.start, None)
        while batch := list(islice(entries, self.size)):
            yield batch


class _Images(Dataset):
    def __init__(self, source: ImageSource, transform: Any, mode: str) -> None:
        self.source, self.transform, self.mode = source, transform, mode

    def __getitem__(self, entry: tuple[str, Any]) -> tuple[str, Tensor | None, str]:
        name, key = entry
        try:
            image = self.source.read(key, self.mode)
        except ImageReadError as e:
            return name, None, str(e)
        return name, self.transform(image), ''


def _collate(samples: list[tuple[str, Tensor | None, str]]) -> tuple[list[str], Tensor, list[str]]:
    paths, images, errors = map(list, zip(*samples))
    readable = [image for image in images if image is not None]
    return paths, torch.stack(readable) if readable else torch.empty(0), errors

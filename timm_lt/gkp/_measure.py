"""Features, residuals and the feature quality of the classes at the end of an epoch."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._capture import captured_inputs
from .._classifier import find_classifier
from ._processes import gather, world_size
from .grouping import rows_per_class
from .quality import FeatureQuality, QualityMeter


@contextmanager
def plain_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without the autocast that Accelerate puts around ``forward``; both are restored afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    wrapped = model.__dict__.pop('forward', None)
    model.eval()
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
        for m, training in modes:
            m.training = training


@torch.no_grad()
def measure_classes(
        model: nn.Module,
        loader: Iterable[tuple[Tensor, Tensor]],
        num_classes: int,
        beta: float,
        autocast: Callable[[], AbstractContextManager],
) -> tuple[FeatureQuality, tuple[Tensor, Tensor, Tensor]]:
    """Quality of every class, and features, residuals and labels of some images of each class, on the CPU.

    Args:
        model: In plain evaluation, see :func:`plain_evaluation`.
        loader: Images with labels, each image once over all processes.
        num_classes: C.
        beta: Weight of the log variance in the feature quality.
        autocast: Makes the context of a forward pass.
    """
    classifier: Any = find_classifier(model)
    meter = QualityMeter(num_classes, beta)
    limit = -(-rows_per_class(num_classes) // world_size())
    taken = torch.zeros(num_classes, dtype=torch.int64)
    kept: list[tuple[Tensor, Tensor, Tensor]] = []
    for input, label in loader:
        with autocast(), captured_inputs(classifier) as inputs:
            logits = model(input).float()
        features = inputs[-1].float()
        meter.update(features, label)
        cpu = label.cpu()
        chosen = []
        for i, c in enumerate(cpu.tolist()):
            if taken[c] < limit:
                taken[c] += 1
                chosen.append(i)
        if chosen:
            index = torch.tensor(chosen, device=label.device)
            residual = logits[index].softmax(1) - F.one_hot(label[index], logits.shape[1])
            kept.append((features[index].cpu(), residual.cpu(), cpu[chosen]))
    width = getattr(classifier, 'in_features', None) or (kept[0][0].shape[1] if kept else 0)
    meter.reduce(width, next(model.parameters()).device)
    features, residuals, labels = (torch.cat(parts) for parts in zip(*gather(kept)))
    return meter.compute(), (features, residuals, labels)

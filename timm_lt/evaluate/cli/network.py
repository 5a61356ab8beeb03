"""Networks to evaluate, and what they say about images."""

from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from ... import hub
from ..._capture import captured_inputs
from ..._classifier import find_classifier
from ...hub import Checkpoint, HubError


class EvaluationError(ValueError):
    """Something that the user can mend; the message is one sentence that says what."""


def load_network(source: str, **options: Any) -> Checkpoint:
    """:func:`timm_lt.hub.load_network`, any error an :class:`EvaluationError`."""
    try:
        return hub.load_network(source, **options)
    except HubError as e:
        raise EvaluationError(str(e)) from e


@torch.no_grad()
def collect(
        model: nn.Module,
        loader: Any,
        *,
        with_features: bool = False,
        progress: str = '',
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Logits (N, C), targets (N,) and, where asked for, the inputs (N, D) of the classifier, on the CPU.

    Args:
        model: In evaluation mode; batches go to its device.
        loader: Yields (input, target).
        with_features: Whether to keep features.
        progress: Label of a bar that only a terminal shows; '' for none.
    """
    from tqdm import tqdm
    device = next(model.parameters()).device
    logits, targets, features = [], [], []
    bar = tqdm(loader, desc=progress, disable=None if progress else True, leave=False)
    for input, target in bar:
        if with_features:
            with captured_inputs(classifier_of(model)) as inputs:
                logits.append(model(input.to(device)))
            features.append(inputs[-1].flatten(1))
        else:
            logits.append(model(input.to(device)))
        targets.append(target)
    if not logits:
        raise EvaluationError('there is no image to evaluate')
    kept = torch.cat(features).float().cpu() if with_features else None
    return torch.cat(logits).float().cpu(), torch.cat(targets).cpu(), kept


def classifier_of(model: nn.Module) -> nn.Module:
    """The last layer of a timm model.

    Raises:
        EvaluationError: If the model has none or several.
    """
    layer = find_classifier(model)
    if layer is None:
        raise EvaluationError(
            f'prototypes and features need a model whose get_classifier() gives one layer; {type(model).__name__} has '
            f'none or several')
    return layer

"""Networks to evaluate, and what they say about images: any timm model, a local folder, the Hub, a weights file."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
import torch.nn as nn
from torch import Tensor

from ..._capture import captured_inputs
from ..._classifier import find_classifier
from ..._timm_hooks import register
from ...hub import Checkpoint, load


class EvaluationError(ValueError):
    """Something that the user can mend; the message is one sentence that says what."""


def load_network(
        source: str,
        *,
        architecture: str | None = None,
        num_classes: int | None = None,
        device: torch.device | str = 'cpu',
) -> Checkpoint:
    """Load a network.

    Args:
        source: Folder of a run or of a checkpoint, ``local-dir:FOLDER``, ``hf-hub:USER/NAME``, the name of a checkpoint
            of this package, a pretrained timm model such as ``resnet18.a1_in1k``, or, with ``architecture``, a weights
            file.
        architecture: timm name of the network of a weights file.
        num_classes: Classes of the network of a weights file.
        device: Where the network goes.

    Raises:
        EvaluationError: If it cannot be read or does not fit.
    """
    register()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # torch asserts that it was built for a GPU
        raise EvaluationError(f'device {str(device)!r} cannot be used: {_first_line(e)}; try --device cpu') from e
    if architecture is not None:
        return _from_file(source, architecture, num_classes, device)
    if ':' not in source and not Path(source).exists() and timm.is_model(source):
        try:
            model = timm.create_model(source, pretrained=True)
        except Exception as e:  # network, cache and Hub raise errors of many kinds
            raise EvaluationError(f'the weights of timm model {source!r} cannot be had: {_first_line(e)}') from e
        return _timm_checkpoint(model.to(device), source)
    if Path(source).is_file():
        raise EvaluationError(f'{source} is a file: name its network by --model, or pass the folder of a checkpoint')
    try:
        return load(source, device=str(device))
    except Exception as e:
        raise EvaluationError(f'checkpoint {source!r} cannot be read: {_first_line(e)}') from e


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


def _from_file(source: str, architecture: str, num_classes: int | None, device: torch.device | str) -> Checkpoint:
    if not Path(source).is_file():
        raise EvaluationError(f'there is no weights file {source}')
    options: dict[str, Any] = {} if num_classes is None else {'num_classes': num_classes}
    try:
        model = timm.create_model(architecture, pretrained=False, **options)
    except Exception as e:
        raise EvaluationError(f'timm cannot create {architecture!r}: {_first_line(e)}') from e
    try:
        timm.models.load_checkpoint(model, source, weights_only=True)
    except Exception as e:  # unpickling and key errors come in many kinds
        # timm and torch advise to unpickle all the same
        if any(isinstance(cause, UnpicklingError) for cause in (e, e.__cause__)):
            raise EvaluationError(
                f'weights file {source} was not read: it is damaged, or holds objects besides tensors, which could run '
                f'code; store the state dict alone, best as safetensors') from e
        raise EvaluationError(f'weights file {source} cannot be read into {architecture}: {_first_line(e)}') from e
    return _timm_checkpoint(model.to(device), source)


def _timm_checkpoint(model: nn.Module, source: str) -> Checkpoint:
    return Checkpoint(model.eval(), None, None, None, {}, {}, None, source)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ' '.join(lines[:2]) if lines else type(error).__name__

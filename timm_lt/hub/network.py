"""Networks by name: any timm model, a local folder, the Hub, a weights file."""

from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
import torch.nn as nn

from .._timm_hooks import register
from .errors import HubError
from .loading import Checkpoint, load

__all__ = ['load_network']


def load_network(
        source: str,
        *,
        architecture: str | None = None,
        num_classes: int | None = None,
        device: torch.device | str = 'cpu',
) -> Checkpoint:
    """Load a network.

    Args:
        source: Folder of a run or of a checkpoint, ``local-dir:FOLDER``, ``hf-hub:USER/NAME``, or the name of a
            checkpoint of this package. Also a pretrained timm model such as ``resnet18.a1_in1k`` or, with
            ``architecture``, a weights file.
        architecture: timm name of the network of a weights file.
        num_classes: Classes of the network of a weights file.
        device: Where the network goes.

    Raises:
        HubError: If it cannot be read or does not fit.
    """
    register()
    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as e:  # torch asserts that it was built for a GPU
        raise HubError(f'device {str(device)!r} cannot be used: {_first_line(e)}; try --device cpu') from e
    if architecture is not None:
        return _from_file(source, architecture, num_classes, device)
    if ':' not in source and not Path(source).exists() and timm.is_model(source):
        try:
            model = timm.create_model(source, pretrained=True)
        except Exception as e:  # network, cache and Hub raise errors of many kinds
            raise HubError(f'the weights of timm model {source!r} cannot be had: {_first_line(e)}') from e
        return _timm_checkpoint(model.to(device), source)
    if Path(source).is_file():
        raise HubError(f'{source} is a file: name its network by --model, or pass the folder of a checkpoint')
    try:
        return load(source, device=str(device))
    except Exception as e:
        raise HubError(f'checkpoint {source!r} cannot be read: {_first_line(e)}') from e


def _from_file(source: str, architecture: str, num_classes: int | None, device: torch.device | str) -> Checkpoint:
    if not Path(source).is_file():
        raise HubError(f'there is no weights file {source}')
    options: dict[str, Any] = {} if num_classes is None else {'num_classes': num_classes}
    try:
        model = timm.create_model(architecture, pretrained=False, **options)
    except Exception as e:
        raise HubError(f'timm cannot create {architecture!r}: {_first_line(e)}') from e
    try:
        timm.models.load_checkpoint(model, source, weights_only=True)
    except Exception as e:  # unpickling and key errors come in many kinds
        # timm and torch advise to unpickle all the same
        if any(isinstance(cause, UnpicklingError) for cause in (e, e.__cause__)):
            raise HubError(
                f'weights file {source} was not read: it is damaged, or holds objects besides tensors, which could run '
                f'code; store the state dict alone, best as safetensors') from e
        raise HubError(f'weights file {source} cannot be read into {architecture}: {_first_line(e)}') from e
    return _timm_checkpoint(model.to(device), source)


def _timm_checkpoint(model: nn.Module, source: str) -> Checkpoint:
    return Checkpoint(model.eval(), None, None, None, {}, {}, None, source)


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return ' '.join(lines[:2]) if lines else type(error).__name__

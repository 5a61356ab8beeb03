"""Formats of export. Each writes a file with its facts, and runs that file again."""

import copy
import io
import json
import logging
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from pathlib import Path
from typing import Any

import torch
from timm.layers import set_exportable, set_scriptable
from torch import Tensor

from .network import INPUT, OUTPUTS, ExportedNetwork

__all__ = ['FORMATS', 'ExportFormat']

_logger = logging.getLogger(__name__)

FACTS = 'timm_lt.json'  # name of the facts inside a file
Run = Callable[[Tensor], tuple[Tensor, Tensor]]


class ExportFormat(ABC):
    """One kind of file."""

    suffix: str
    needs: tuple[str, ...] = ()  # packages beside torch

    @abstractmethod
    def write(self, network: ExportedNetwork, example: Tensor, facts: dict[str, Any], file: Path) -> None:
        """Write the file.

        Args:
            network: Module to export.
            example: Images (B, channels, H, W); the file takes any B.
            facts: Stored beside the network, see :func:`facts_of`.
            file: Where to.
        """

    @abstractmethod
    def open(self, file: Path) -> tuple[Run, dict[str, Any]]:
        """A function that runs the file on images, and the stored facts."""


class ONNXFormat(ExportFormat):
    """ONNX, by torch's exporter on torch.export; the facts are entries of the model's metadata."""

    suffix = '.onnx'
    needs = ('onnx', 'onnxscript', 'onnxruntime')

    def write(self, network: ExportedNetwork, example: Tensor, facts: dict[str, Any], file: Path) -> None:
        with _quiet(), set_exportable(True):
            program = torch.onnx.export(
                network, (example,), dynamo=True, input_names=[INPUT], output_names=list(OUTPUTS),
                dynamic_shapes=_any_batch(), verbose=False)
        assert program is not None  # with dynamo=True
        program.model.metadata_props.update({name: json.dumps(value) for name, value in facts.items()})
        program.save(str(file), external_data=False)

    def open(self, file: Path) -> tuple[Run, dict[str, Any]]:
        import onnxruntime
        session = onnxruntime.InferenceSession(str(file), providers=['CPUExecutionProvider'])

        def run(images: Tensor) -> tuple[Tensor, Tensor]:
            scores, probabilities = session.run(list(OUTPUTS), {INPUT: images.numpy()})
            return torch.from_numpy(scores), torch.from_numpy(probabilities)

        stored = session.get_modelmeta().custom_metadata_map
        return run, {name: json.loads(value) for name, value in stored.items()}


class TorchExportFormat(ExportFormat):
    """torch.export; the facts are the extra file ``timm_lt.json``."""

    suffix = '.pt2'

    def write(self, network: ExportedNetwork, example: Tensor, facts: dict[str, Any], file: Path) -> None:
        with _quiet(), set_exportable(True):
            program = torch.export.export(network, (example,), dynamic_shapes=_any_batch())
            with open(file, 'wb') as f:  # a name must end in .pt2
                torch.export.save(program, f, extra_files={FACTS: json.dumps(facts)})

    def open(self, file: Path) -> tuple[Run, dict[str, Any]]:
        extra = {FACTS: ''}
        program = torch.export.load(io.BytesIO(file.read_bytes()), extra_files=extra)
        return program.module(), json.loads(extra[FACTS])


class TorchScriptFormat(ExportFormat):
    """TorchScript: the network scripted where it can be, else traced; the facts are the extra file ``timm_lt.json``."""

    suffix = '.ts'

    def write(self, network: ExportedNetwork, example: Tensor, facts: dict[str, Any], file: Path) -> None:
        with _quiet(), set_scriptable(True), set_exportable(True):
            network = copy.copy(network)
            network._modules = dict(network._modules)
            try:
                network.model = torch.jit.script(network.model)
            except Exception:  # noqa: BLE001  many timm networks cannot be scripted, each in its own way
                _logger.info('%s is traced, because it cannot be scripted', type(network.model).__name__)
            traced = torch.jit.trace(network, example, check_trace=False)
            torch.jit.save(traced, str(file), _extra_files={FACTS: json.dumps(facts)})

    def open(self, file: Path) -> tuple[Run, dict[str, Any]]:
        extra = {FACTS: ''}
        with _quiet():
            program = torch.jit.load(str(file), map_location='cpu', _extra_files=extra)
        return program, json.loads(extra[FACTS])


FORMATS: dict[str, ExportFormat] = {
    'onnx': ONNXFormat(), 'torch_export': TorchExportFormat(), 'torchscript': TorchScriptFormat()}


def _any_batch() -> dict[str, Any]:
    return {INPUT: {0: torch.export.Dim.DYNAMIC}}


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the progress and the deprecation warnings that exporters print; errors are raised all the same."""
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
        warnings.simplefilter('ignore')
        yield

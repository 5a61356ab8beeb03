"""Export of a checkpoint: network, stored correction and class names in one file that runs without this package.

- ``network``: the module that is exported, and the facts that go with it.
- ``formats``: ONNX, torch.export and TorchScript: how each is written and run again.
- ``checking``: comparison of the file with the network in Python.
"""

from .checking import ExportMismatch
from .formats import FORMATS, ExportFormat
from .network import ExportedNetwork, facts_of
from .run import Exported, ExportError, export

__all__ = [
    'FORMATS', 'ExportError', 'ExportFormat', 'ExportMismatch', 'Exported', 'ExportedNetwork', 'export', 'facts_of',
]

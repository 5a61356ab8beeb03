"""One export: from a checkpoint to a file that was compared with it."""

import copy
import importlib.util
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import torch
from timm.data import resolve_data_config
from torch import Tensor

from .._files import whole_file
from .._validate import check_option
from ..data import ImageReadError, eval_transform
from ..data.augment import BatchAugment
from ..hub import Checkpoint, load_network
from ..predict import open_source
from .checking import largest_difference
from .formats import FORMATS, ExportFormat
from .network import ExportedNetwork, facts_of

__all__ = ['ExportError', 'Exported', 'export']

IMAGES = 8  # compared


class ExportError(ValueError):
    """An export that cannot be made; the message says why and what to do."""


@dataclass(frozen=True)
class Exported:
    """A finished export.

    Attributes:
        file: The file.
        difference: Largest difference from the network in Python, of scores or probabilities.
        images: Number of images compared.
        correction: Label of the correction inside, or None.
    """
    file: Path
    difference: float
    images: int
    correction: str | None

    def __str__(self) -> str:
        corrected = self.correction or 'no correction'
        return f'{self.file} ({corrected}; largest difference on {self.images} images {self.difference:.1e})'


def export(
        checkpoint: Checkpoint | str | Path,
        output: str | Path,
        *,
        format: str | None = None,
        images: str | Path | None = None,
        use_posthoc: bool = True,
        tolerance: float = 1e-4,
) -> Exported:
    """Write a checkpoint as one file: network, stored correction and class names, with any batch size.

    The file is run again and compared with the network before it appears. Its input are normalised images, its outputs
    ``scores`` and ``probabilities``, see :func:`facts_of`.

    Args:
        checkpoint: A checkpoint, or a name that :func:`timm_lt.hub.load_network` takes.
        output: The file. Its ending tells the format: ``.onnx``, ``.pt2`` (torch.export) or ``.ts`` (TorchScript).
        format: ``'onnx'``, ``'torch_export'`` or ``'torchscript'``, for a file with another ending.
        images: Images to compare on, as :func:`timm_lt.predict.open_source` takes them; the first 8 are read. None:
            noise.
        use_posthoc: Put the stored correction into the file.
        tolerance: Largest difference allowed.

    Raises:
        ExportError: If the format is not clear, a package is missing or the correction is transductive. Also if no
            image can be read, or the network cannot be exported.
        ExportMismatch: If the file gives other scores than the network.
        HubError: If the checkpoint cannot be loaded.
    """
    output = Path(output)
    written_as = _format(output, format)
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_network(str(checkpoint))
    posthoc = checkpoint.posthoc if use_posthoc else None
    if posthoc is not None and posthoc.transductive:
        raise ExportError(
            f'the stored correction ({posthoc.label}) needs all images at once, so it cannot be exported; leave it out '
            f'by use_posthoc=False (--no-posthoc)')
    batch = _batch(checkpoint, images)
    model = checkpoint.model
    if next(model.parameters()).device.type != 'cpu':
        model = copy.deepcopy(model).cpu()
    network = ExportedNetwork(model, posthoc).eval()
    with whole_file(output) as temporary:
        try:
            written_as.write(network, batch, facts_of(checkpoint, posthoc), temporary)
        except Exception as e:  # noqa: BLE001  exporters raise errors of every kind
            reason = ' '.join(str(e).split())[:300] or type(e).__name__
            raise ExportError(f'{checkpoint.architecture} cannot be exported to {output}: {reason}') from e
        run, _ = written_as.open(temporary)
        difference = largest_difference(network, run, batch, tolerance)
    return Exported(output, difference, len(batch), None if posthoc is None else posthoc.label)


def _format(output: Path, name: str | None) -> ExportFormat:
    if name is None:
        name = next((n for n, f in FORMATS.items() if f.suffix == output.suffix.lower()), None)
        if name is None:
            endings = ', '.join(f.suffix for f in FORMATS.values())
            raise ExportError(f'the output must end in {endings}, or format must be given, got {str(output)!r}')
    written_as = FORMATS[check_option('format', name, tuple(FORMATS))]
    missing = [package for package in written_as.needs if importlib.util.find_spec(package) is None]
    if missing:
        raise ExportError(f"{name} needs {', '.join(missing)}; install by pip install 'timm-lt[export]'")
    return written_as


def _batch(checkpoint: Checkpoint, images: str | Path | None) -> Tensor:
    """Normalised images on the CPU, (B, channels, H, W)."""
    config = resolve_data_config({}, model=checkpoint.model)
    size = config['input_size']
    if images is None:
        pixels = torch.randint(0, 256, (IMAGES, *size), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
        return BatchAugment(config['mean'], config['std']).normalize(pixels)
    transform = eval_transform(size, config['interpolation'], config['crop_pct'], config['crop_mode'])
    source, found = open_source(images), []
    for _, key in islice(source.entries(), 10 * IMAGES):
        try:
            found.append(transform(source.read(key, 'L' if size[0] == 1 else 'RGB')))
        except ImageReadError:
            continue
        if len(found) == IMAGES:
            break
    if not found:
        raise ExportError(f'no image of {str(images)!r} can be read, so nothing can be compared')
    return BatchAugment(config['mean'], config['std']).normalize(torch.stack(found))

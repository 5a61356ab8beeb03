"""One run of predictions: from a checkpoint and images to a table on disk."""

import logging
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm import tqdm

from ..hub import Checkpoint, load_network
from ..hub.weights import WEIGHTS, sha256_of
from . import parts as parts_module
from .network import UNKNOWN, Prediction, predict_images
from .parts import Parts
from .sources import ImageSource, open_source
from .tables import table_for

__all__ = ['Summary', 'predict']

_logger = logging.getLogger(__name__)

EXAMPLES = 3


@dataclass
class Summary:
    """Counts of a run of predictions.

    Attributes:
        images: Rows of the table.
        resumed: Rows that an earlier run had finished.
        labels: Images of this run by predicted label.
        errors: Images of this run without a prediction.
        examples: The first few of them, with the reason.
        seconds: Duration of this run.
        output: The table.
        left_out: A line for each kind of file of a folder that is no image to predict.
    """
    images: int = 0
    resumed: int = 0
    labels: Counter = field(default_factory=Counter)
    errors: int = 0
    examples: list[str] = field(default_factory=list)
    seconds: float = 0.0
    output: Path | None = None
    left_out: list[str] = field(default_factory=list)

    def count(self, prediction: Prediction) -> Prediction:
        """Count a prediction and return it."""
        self.images += 1
        if prediction.error:
            self.errors += 1
            if len(self.examples) < EXAMPLES:
                self.examples.append(f'{prediction.path}: {prediction.error}')
        else:
            self.labels[prediction.label] += 1
        return prediction

    def __str__(self) -> str:
        new = self.images - self.resumed
        rate = f', {new / self.seconds:.0f} images/s' if new and self.seconds else ''
        lines = [f'{self.images} images' + (f', {self.resumed} of them before' if self.resumed else '') + rate]
        if self.labels[UNKNOWN]:
            lines.append(f'{self.labels[UNKNOWN]} of no known class, by the stored threshold')
        if self.errors:
            more = '; ...' if self.errors > len(self.examples) else ''
            lines.append(f'{self.errors} without a prediction: {"; ".join(self.examples)}{more}')
        return '\n'.join(lines + self.left_out)


def predict(
        checkpoint: Checkpoint | str | Path,
        source: ImageSource | str | Path,
        output: str | Path,
        *,
        top_k: int = 5,
        device: torch.device | str = 'cpu',
        overwrite: bool = False,
        progress: bool = False,
        **options: Any,
) -> Summary:
    """Predict images and write a table of them, with a row for each image in the order of the source.

    The table is written in parts beside it (``OUTPUT.parts``). An interrupted run goes on from the finished parts when
    it is called in the same way again. The output appears whole at the end.

    Args:
        checkpoint: A checkpoint, or a name that :func:`timm_lt.hub.load_network` takes.
        source: Images, or a name that :func:`open_source` takes.
        output: File that ends in ``.csv``, ``.parquet`` or ``.jsonl``. Columns: ``path``, ``label``, ``label_1``,
            ``probability_1``, ... and ``error``.
        top_k: Classes to name in a row, at most as many as the network has.
        device: Where a checkpoint given by name goes.
        overwrite: Replace an output that exists.
        progress: Show a progress bar on a terminal.
        **options: ``batch_size``, ``workers``, ``amp_dtype``, ``use_posthoc``: see :func:`predict_images`.

    Raises:
        HubError: If the checkpoint cannot be loaded.
        FileNotFoundError: If the source does not exist.
        ValueError: If the output exists, there is no image, or unfinished parts are of other options or images.

    Examples:
        >>> summary = predict('digits', 'photos', 'predictions.csv')  # doctest: +SKIP
    """
    started = time.monotonic()
    output = Path(output)
    if output.exists() and not overwrite:
        raise ValueError(f'{output} exists; name another output, or replace it by overwrite=True (--overwrite)')
    if not isinstance(checkpoint, Checkpoint):
        checkpoint = load_network(str(checkpoint), device=device)
    if not isinstance(source, ImageSource):
        source = open_source(source)
    top_k = min(top_k, checkpoint.num_classes)
    table = table_for(output, top_k)
    parts = Parts(output, table, _identity(checkpoint, source, top_k, options))
    parts.check(source)
    summary = Summary(images=parts.rows, resumed=parts.rows, output=output)
    total = source.count()
    if total == 0:
        raise ValueError('; '.join(['there is no image to predict', *source.left_out()]))
    predictions = predict_images(checkpoint, source, top_k=top_k, start=parts.rows, **options)
    with tqdm(total=total, initial=parts.rows, unit='image', disable=None if progress else True, leave=False) as bar:
        counted = _counted(predictions, summary, bar)
        while rows := list(islice(counted, parts_module.ROWS)):
            parts.add(rows)
    parts.join()
    summary.left_out = source.left_out()
    summary.seconds = time.monotonic() - started
    return summary


def _counted(predictions: Iterator[Prediction], summary: Summary, bar: Any) -> Iterator[Prediction]:
    for prediction in predictions:
        bar.update()
        yield summary.count(prediction)


def _identity(
        checkpoint: Checkpoint, source: ImageSource, top_k: int, options: dict[str, Any]) -> dict[str, Any]:
    """Everything that changes the rows."""
    folder, posthoc = checkpoint.folder, checkpoint.posthoc
    return {
        'checkpoint': sha256_of(folder / WEIGHTS) if folder is not None else checkpoint.source,
        'correction': None if posthoc is None or not options.get('use_posthoc', True) else posthoc.to_dict(),
        'threshold': checkpoint.open_set and [checkpoint.open_set.score, checkpoint.open_set.threshold],
        'classes': checkpoint.class_names, 'top_k': top_k, 'precision': str(options.get('amp_dtype')),
        **source.identity,
    }

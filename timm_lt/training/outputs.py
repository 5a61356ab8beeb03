"""The folder of a run: ``OUTPUT/EXPERIMENT/``. Each file is written whole or not at all."""

import csv
import io
import json
import os
import shutil
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch.nn as nn
from torch import Tensor

from .._files import json_ready, replace_folder, whole_file, write_text
from ..class_distribution import ClassDistribution
from ..posthoc import PostHoc
from .options import Options, to_yaml

# written before the first step
HEAD_FILES = frozenset({'args.yaml', 'class_distribution.json', 'fingerprint.json', 'parts.json'})


class RunFolder:
    """Paths and writers of one run; only the main process writes.

    Args:
        path: ``OUTPUT/EXPERIMENT``.
        writes: True on the main process.
    """

    def __init__(self, path: Path, writes: bool = True) -> None:
        self.path = Path(path)
        self.writes = writes

    @contextmanager
    def removed_if_untrained(self) -> Iterator[None]:
        """A block after whose failure the folder is removed where it holds nothing that was trained."""
        try:
            yield
        except BaseException:
            if self.writes and self.path.is_dir() and HEAD_FILES.issuperset(p.name for p in self.path.iterdir()):
                shutil.rmtree(self.path)
            raise

    def write_args(self, options: Options) -> None:
        self._text('args.yaml', to_yaml(options))

    @staticmethod
    def epoch_checkpoint(epoch: int) -> str:
        """Name of the checkpoint of one epoch, counted from 0."""
        return f'checkpoint-{epoch}'

    def drop_epoch_checkpoints(self, kept: Collection[int]) -> list[str]:
        """Remove the checkpoints of all epochs but ``kept``; returns their names."""
        names = {self.epoch_checkpoint(epoch) for epoch in kept}
        dropped = [folder for folder in self.path.glob('checkpoint-*') if folder.name not in names]
        if self.writes:
            for folder in dropped:
                shutil.rmtree(folder, ignore_errors=True)
        return [folder.name for folder in dropped]

    def write_summary(self, rows: list[dict[str, Any]]) -> None:
        """``summary.csv``, a row an epoch; an absent metric is an empty cell."""
        if not rows:
            return
        columns = list(dict.fromkeys(key for row in rows for key in row))
        buffer = io.StringIO()
        writer = csv.DictWriter(buffer, columns, restval='', lineterminator='\n')
        writer.writeheader()
        writer.writerows({k: '' if v is None else v for k, v in row.items()} for row in rows)
        self._text('summary.csv', buffer.getvalue())

    def write_metrics(self, metrics: dict[str, Any]) -> None:
        self._text('metrics.json', json.dumps(json_ready(metrics), indent=1, allow_nan=False) + '\n')

    def write_distribution(self, distribution: ClassDistribution) -> None:
        if self.writes:
            distribution.to_json(self.path / 'class_distribution.json')

    def write_parts(self, members: dict[str, Any]) -> None:
        """``parts.json``, the images of each part, see :class:`timm_lt.training.data.DataParts`."""
        self._text('parts.json', json.dumps(members) + '\n')

    def write_posthoc(self, posthoc: PostHoc | None) -> None:
        """Write ``posthoc.json`` for the weights in the same folder; None removes the file of an earlier attempt."""
        if posthoc is not None:
            self._text('posthoc.json', json.dumps(json_ready(posthoc.to_dict()), indent=1) + '\n')
        elif self.writes:
            (self.path / 'posthoc.json').unlink(missing_ok=True)

    def write_predictions(self, logits: Tensor, targets: Tensor) -> None:
        """``predictions.npz``: ``logits`` (N, C) float32 and ``targets`` (N,) int64 of the final evaluation."""
        if self.writes:
            with whole_file(self.path / 'predictions.npz') as temporary, open(temporary, 'wb') as f:
                np.savez_compressed(f, logits=logits.float().cpu().numpy(), targets=targets.cpu().numpy())

    def write_best_as_last(self, epoch: int) -> None:
        """Without a validation part nothing was chosen: ``best/`` is the last epoch's state."""
        if not self.writes:
            return
        new = self.path / 'best.new'
        shutil.rmtree(new, ignore_errors=True)
        shutil.copytree(self.path / 'last', new, copy_function=_link_or_copy)
        (new / 'selection.json').write_text(json.dumps({'epoch': epoch, 'chosen_by': 'nothing: the last epoch'}))
        replace_folder(new, self.path / 'best')

    def write_mistakes(self, tested: Any) -> None:
        """``mistakes.zip``, pictures of the tested images that the report shows."""
        if self.writes:
            from ..evaluate.reports import write_mistakes
            write_mistakes(self.path, tested)

    def write_report(self) -> None:
        """``report.html`` and ``plots/``, from the files of the run."""
        if self.writes:
            from ..evaluate import write_report
            write_report(self.path)

    def write_hub(self, model: nn.Module, model_args: dict[str, Any], data_config: dict[str, Any]) -> None:
        """``hub/`` without its card and plots, see :mod:`timm_lt.hub.folder`, from the other files of the run."""
        if self.writes:
            from ..hub import write_hub_folder
            write_hub_folder(self.path, model, model_args=model_args, data_config=data_config, card=False)

    def write_card(self) -> None:
        """Card and plots of ``hub/``, from the files there and the plots of the run."""
        if self.writes:
            from ..hub import write_hub_card
            write_hub_card(self.path)

    def _text(self, name: str, text: str) -> None:
        if self.writes:
            write_text(self.path / name, text)


def _link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)

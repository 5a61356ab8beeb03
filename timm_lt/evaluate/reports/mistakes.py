"""Pictures of mistakes: the wrong predictions with the highest confidence in each split."""

import io
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from ..._files import whole_file
from ...class_distribution import SPLIT_NAMES, ClassDistribution
from ...data.reading import read_sample
from ..metrics import check_predictions, predict
from .html import data_uri, escape

FILE = 'mistakes.zip'
PER_SPLIT = 8
SIDE = 160  # pixels of a picture at most


def worst_mistakes(logits: Any, targets: Any, splits: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The wrong predictions with the highest confidence, up to 8 of each split.

    Args:
        logits: (N, C).
        targets: (N,).
        splits: Masks (C,) by name.

    Returns:
        ``image`` (its number in the test), ``split``, ``true``, ``predicted`` and ``confidence`` of each.
    """
    logits, targets = check_predictions(logits, targets)
    outcome = predict(logits, targets)
    targets, predicted, confidence = targets.cpu(), outcome['predicted'], outcome['confidence']
    wrong = (predicted >= 0) & (predicted != targets)
    found = []
    for name in SPLIT_NAMES:
        chosen = (wrong & splits[name][targets]).nonzero().flatten()
        order = confidence[chosen].argsort(descending=True, stable=True)
        for k in chosen[order][:PER_SPLIT].tolist():
            found.append({'image': k, 'split': name, 'true': int(targets[k]), 'predicted': int(predicted[k]),
                          'confidence': float(confidence[k])})
    return found


def write_mistakes(
        folder: str | Path,
        dataset: Any,
        logits: Any,
        targets: Any,
        class_counts: Any,
        split_rule: str = 'gt100_lt20',
) -> None:
    """Write ``mistakes.zip`` of a run folder, which its report shows.

    Args:
        folder: The run folder.
        dataset: The tested images, map-style, PIL image and label; a transform must have been taken off.
        logits: Predictions for its images in its order, (N, C).
        targets: True classes, (N,).
        class_counts: Training images per class, (C,), or a :class:`ClassDistribution`.
        split_rule: A rule of :meth:`ClassDistribution.splits`.
    """
    distribution = class_counts if isinstance(class_counts, ClassDistribution) else ClassDistribution(class_counts)
    found = worst_mistakes(torch.as_tensor(logits), targets, distribution.splits(split_rule))
    with whole_file(Path(folder) / FILE) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        for k, mistake in enumerate(found):
            image = read_sample(dataset, mistake['image'])[0].convert('RGB')
            image.thumbnail((SIDE, SIDE))
            buffer = io.BytesIO()
            image.save(buffer, 'png' if max(image.size) < 64 else 'jpeg')
            mistake['file'] = f'{k}.{"png" if max(image.size) < 64 else "jpg"}'
            archive.writestr(mistake['file'], buffer.getvalue())
        archive.writestr('mistakes.json', json.dumps(found, indent=1))


def read_mistakes(path: Path) -> list[dict[str, Any]]:
    """Entries of a ``mistakes.zip`` with the bytes of each ``picture``."""
    with zipfile.ZipFile(path) as archive:
        found = json.loads(archive.read('mistakes.json'))
        return [{**mistake, 'picture': archive.read(mistake['file'])} for mistake in found]


def mistakes_section(run: Mapping[str, Any]) -> str:
    """HTML of the pictures of a run of :func:`load_run`; empty without pictures."""
    found: Sequence[Mapping[str, Any]] = run['mistakes'] or ()
    parts = []
    for split in SPLIT_NAMES:
        pictures = [_picture(mistake, run['class_names']) for mistake in found if mistake['split'] == split]
        if pictures:
            parts.append(f"<h3>{split}</h3><div class='mistakes'>{''.join(pictures)}</div>")
    if not parts:
        return ''
    return (f"<h2>Mistakes</h2>{''.join(parts)}<figcaption>Wrong predictions with the highest confidence, by the split "
            'of the true class.</figcaption>')


def _picture(mistake: Mapping[str, Any], names: Sequence[str] | None) -> str:
    true, predicted = (escape(names[mistake[k]] if names else f'class {mistake[k]}') for k in ('true', 'predicted'))
    kind = 'image/png' if mistake['file'].endswith('.png') else 'image/jpeg'
    return (
        f"<figure><img alt='{true}, predicted {predicted}' src='{data_uri(kind, mistake['picture'])}'>"
        f"<figcaption><b>{true}</b><br>predicted {predicted}, {100 * mistake['confidence']:.0f}%</figcaption></figure>")

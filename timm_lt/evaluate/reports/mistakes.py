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
from ...data.unreadable import without_transform
from ..metrics import check_predictions, predict
from .html import data_uri, escape
from .runs import MISTAKES, load_run

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


def write_mistakes(run_dir: str | Path, dataset: Any) -> None:
    """Write ``mistakes.zip`` of a run, which its report shows, from its metrics and logits.

    Args:
        run_dir: The run folder; without logits nothing is written.
        dataset: The tested images in the order of the logits, map-style, (PIL image, label); its transform is not
            applied.

    Raises:
        ImageReadError: If an image cannot be read.
    """
    run = load_run(run_dir)
    if run['logits'] is None:
        return
    images, m = without_transform(dataset), run['metrics']
    splits = ClassDistribution(m['train_images_per_class']).splits(m['split_rule'])
    found = worst_mistakes(torch.as_tensor(run['logits']).float(), run['targets'], splits)
    with whole_file(Path(run_dir) / MISTAKES) as temporary, zipfile.ZipFile(temporary, 'w') as archive:
        for k, mistake in enumerate(found):
            picture = read_sample(images, mistake['image'])[0].convert('RGB')
            picture.thumbnail((SIDE, SIDE))
            kind = 'png' if max(picture.size) < 64 else 'jpeg'
            buffer = io.BytesIO()
            picture.save(buffer, kind)
            mistake['file'] = f'{k}.{kind}'
            archive.writestr(mistake['file'], buffer.getvalue())
        archive.writestr('mistakes.json', json.dumps(found, indent=1))


def mistakes_section(run: Mapping[str, Any]) -> str:
    """HTML of the pictures of a run of :func:`load_run`; empty without pictures."""
    found: Sequence[Mapping[str, Any]] = run['mistakes'] or ()
    shown = []
    for split in SPLIT_NAMES:
        pictures = [_picture(mistake, run['class_names']) for mistake in found if mistake['split'] == split]
        if pictures:
            shown.append(f"<h3>{split}</h3><div class='mistakes'>{''.join(pictures)}</div>")
    if not shown:
        return ''
    return (f"<h2>Mistakes</h2>{''.join(shown)}<figcaption>Wrong predictions with the highest confidence, by the split "
            'of the true class.</figcaption>')


def _picture(mistake: Mapping[str, Any], names: Sequence[str] | None) -> str:
    true, predicted = (escape(names[mistake[k]] if names else f'class {mistake[k]}') for k in ('true', 'predicted'))
    kind = f"image/{mistake['file'].rpartition('.')[2]}"
    return (
        f"<figure><img alt='{true}, predicted {predicted}' src='{data_uri(kind, mistake['picture'])}'>"
        f"<figcaption><b>{true}</b><br>predicted {predicted}, {100 * mistake['confidence']:.0f}%</figcaption></figure>")

"""Load a checkpoint with what it was trained on and how it was measured."""

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast, overload

import timm
import torch
import torch.nn as nn
import yaml
from PIL import Image
from torch import Tensor

from ..class_distribution import ClassDistribution
from ..data.pixels import convert_image
from ..data.reading import read_image
from ..posthoc import PostHoc
from .errors import HubError
from .open_set import OpenSetThreshold, read_open_set
from .weights import read_weights

__all__ = ['Checkpoint', 'list_shipped', 'load', 'shipped']

SHIPPED = Path(__file__).parent / 'checkpoints'


@dataclass(repr=False)
class Checkpoint:
    """A trained network and what is known of it.

    ``checkpoint('photo.jpg')`` gives the probability of each class, ``checkpoint(batch)`` the scores of a batch.

    Attributes:
        model: The network in evaluation mode.
        class_names: Names of the classes, or None.
        distribution: Training images per class, or None for a checkpoint of timm alone.
        posthoc: Correction of the logits, or None.
        metrics: Measured metrics and their protocol.
        recipe: Resolved options of the run.
        folder: Where the files lie, or None for a network of timm.
        source: Name that it was asked for by.
        open_set: Threshold below which an image is of no known class, or None.
    """
    model: nn.Module
    class_names: list[str] | None
    distribution: ClassDistribution | None
    posthoc: PostHoc | None
    metrics: dict[str, Any]
    recipe: dict[str, Any]
    folder: Path | None
    source: str = ''
    open_set: OpenSetThreshold | None = None

    @property
    def architecture(self) -> str:
        """timm's name of the network."""
        config = getattr(self.model, 'pretrained_cfg', None) or {}
        return config.get('architecture') or type(self.model).__name__

    @property
    def num_classes(self) -> int:
        return cast(int, self.model.num_classes)

    @property
    def in_chans(self) -> int:
        """Channels of the input, 1 or 3."""
        return timm.data.resolve_data_config({}, model=self.model)['input_size'][0]

    @property
    def num_parameters(self) -> int:
        return sum(p.numel() for p in self.model.parameters())

    @property
    def transform(self) -> Callable:
        """timm's evaluation transform of the network: a PIL image to a tensor (3, H, W)."""
        return timm.data.create_transform(**timm.data.resolve_data_config({}, model=self.model))

    def __repr__(self) -> str:
        corrected = f', {self.posthoc.method}' if self.posthoc is not None else ''
        return (
            f'Checkpoint({self.source!r}: {self.architecture}, {self.num_parameters:,} parameters, '
            f'{self.num_classes} classes{corrected})')

    @overload
    def __call__(self, input: Tensor) -> Tensor: ...

    @overload
    def __call__(self, input: str | Path | Image.Image) -> dict[str, float]: ...

    def __call__(self, input: Tensor | str | Path | Image.Image) -> Tensor | dict[str, float]:
        """Scores or probabilities from the network, post-hoc correction included.

        A transductive correction is left out: it needs the logits of all test images at once; call ``posthoc`` on them.

        Args:
            input: A batch of images that :attr:`transform` has prepared, (B, C, H, W), or one file or PIL image.

        Returns:
            Scores (B, C) for a batch. For one image, the probability in [0, 1] of each class by name, the most probable
            first. Classes go by number where the checkpoint has no names.

        Raises:
            ImageReadError: If the file cannot be read; it is an ``OSError``.
        """
        if isinstance(input, Tensor):
            return self._scores(input)
        mode = 'L' if self.in_chans == 1 else 'RGB'
        image = convert_image(input, mode) if isinstance(input, Image.Image) else read_image(input, mode)
        device = next(self.model.parameters()).device
        with torch.no_grad():
            probabilities = self._scores(self.transform(image)[None].to(device))[0].softmax(dim=0)
        names = self.class_names or [str(c) for c in range(self.num_classes)]
        order = probabilities.argsort(descending=True, stable=True).tolist()
        return {names[c]: float(probabilities[c]) for c in order}

    def _scores(self, batch: Tensor) -> Tensor:
        logits = self.model(batch)
        return logits if self.posthoc is None or self.posthoc.transductive else self.posthoc(logits)


def list_shipped() -> list[str]:
    """Names of the checkpoints that come with the package, sorted; each is an argument of :func:`load`."""
    return sorted(p.parent.name for p in SHIPPED.glob('*/config.json'))


@overload
def shipped() -> list[str]: ...


@overload
def shipped(name: str) -> Path: ...


def shipped(name: str = '') -> Path | list[str]:
    """The folder of a checkpoint that comes with the package; without a name, the names.

    Raises:
        HubError: If there is no such checkpoint.
    """
    names = list_shipped()
    if not name:
        return names
    if name not in names:
        raise HubError(f'no checkpoint {name!r} comes with the package; there is {", ".join(names) or "none"}')
    return SHIPPED / name


def load(name_or_dir: str | Path, *, revision: str | None = None, device: str = 'cpu') -> Checkpoint:
    """Load a checkpoint with its class names, class counts, metrics and post-hoc correction.

    Only ``model.safetensors`` is read, after a check against the SHA-256 of ``manifest.json``; a pickled or changed
    file is refused unread.

    Args:
        name_or_dir: A folder (a hub folder, or the run that has one) or ``'local-dir:FOLDER'``. ``'digits'`` names a
            checkpoint that comes with the package. ``'hf-hub:USER/NAME'`` or ``'USER/NAME'`` names one on the Hub.
        revision: Branch, tag or commit on the Hub.
        device: Where the network goes.

    Raises:
        HubError: If there is no such checkpoint, or its files are damaged, changed, or do not fit the network.
    """
    folder = _find(str(name_or_dir), revision)
    tensors = read_weights(folder)
    try:
        model: Any = timm.create_model(f'local-dir:{folder}', pretrained=False)
    except (RuntimeError, TypeError, ValueError, KeyError) as e:
        raise HubError(f'{folder}: config.json names a network that cannot be built: {e}') from e
    try:
        model.load_state_dict(tensors)
    except RuntimeError as e:
        raise HubError(f'{folder}: the weights do not fit the network of config.json: {e}') from e
    distribution = None
    if (folder / 'class_distribution.json').is_file():
        try:
            distribution = ClassDistribution.from_json(folder / 'class_distribution.json')
        except (TypeError, ValueError) as e:
            raise HubError(f'{folder}: {e}') from e
        if distribution.num_classes != model.num_classes:
            raise HubError(
                f'{folder}: class_distribution.json has {distribution.num_classes} classes, the network '
                f'{model.num_classes}')
    posthoc = _posthoc(folder / 'posthoc.json', model.num_classes)
    names = _json(folder / 'config.json').get('label_names')
    if names is None and distribution is not None:
        names = distribution.class_names
    return Checkpoint(
        model=model.to(device).eval(), class_names=list(names) if names else None, distribution=distribution,
        posthoc=posthoc, metrics=_json(folder / 'metrics.json') or {},
        recipe=_recipe(folder / 'recipe.yaml'), folder=folder,
        source=str(name_or_dir), open_set=read_open_set(folder))


def _find(name: str, revision: str | None) -> Path:
    scheme, _, rest = name.partition(':')
    if scheme == 'hf-hub' and rest:
        return _download(rest, revision)
    folder = Path(rest if scheme == 'local-dir' and rest else name)
    if name in shipped() and not (folder / 'config.json').is_file():
        return shipped(name)
    if folder.is_dir():
        if not (folder / 'config.json').is_file() and (folder / 'hub' / 'config.json').is_file():
            folder = folder / 'hub'
        if not (folder / 'config.json').is_file():
            raise HubError(f'{folder} is no checkpoint: it has neither config.json nor hub/config.json')
        return folder
    if scheme != 'local-dir' and name.count('/') == 1 and not name.startswith(('.', '/', '~')):
        return _download(name, revision)
    raise HubError(
        f'no checkpoint {name!r}: no such folder; with the package comes {", ".join(shipped()) or "none"}; '
        f"one on the Hub is named 'hf-hub:USER/NAME'")


def _download(name: str, revision: str | None) -> Path:
    from .remote import download
    repo_id, _, at = name.partition('@')  # as in timm's hf-hub:USER/NAME@REVISION
    return download(repo_id, revision or at or None)


def _json(path: Path) -> Any:
    if not path.is_file():
        return None
    try:
        return json.loads(path.read_text(encoding='utf-8'))
    except ValueError as e:
        raise HubError(f'{path} is damaged: {e}. Download the checkpoint again') from e


def _posthoc(path: Path, num_classes: int) -> PostHoc | None:
    values = _json(path)
    if values is None:
        return None
    try:
        posthoc = PostHoc.from_dict(values)
    except (TypeError, ValueError) as e:
        raise HubError(f'{path}: {e}') from e
    for name in ('log_column_sums', 'class_counts', 'weight_norms', 'bias'):
        entries = getattr(posthoc, name)
        if entries is not None and len(entries) != num_classes:
            raise HubError(f'{path}: {name} is of {len(entries)} classes, the network has {num_classes}')
    return posthoc


def _recipe(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        recipe = yaml.safe_load(path.read_text(encoding='utf-8'))
    except (yaml.YAMLError, UnicodeDecodeError) as e:
        raise HubError(f'{path} is damaged: {e}. Download the checkpoint again') from e
    if not isinstance(recipe, dict):
        raise HubError(f'{path} is damaged: it holds no `key: value` lines. Download the checkpoint again')
    return recipe

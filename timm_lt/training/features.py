"""Inputs of the classifier of a frozen network, computed once, kept in a file, and given in batches."""

import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
import torch.nn as nn
from accelerate.utils import gather_object
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from .._classifier import find_classifier
from .._files import whole_file
from ..data import EpochBatches
from ..two_stage import classifier_inputs
from .errors import ConfigError, one_line
from .evaluation import evaluate

if TYPE_CHECKING:
    from .stage import Stage

FEATURE_FILE = 'features.safetensors'
_FACTS = 'facts'


class FeatureModel(nn.Module):
    """Images to the input of the classifier.

    Args:
        model: A timm model.
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        return classifier_inputs(self.model, images)


class FeatureLoader:
    """Batches of features that were computed once, in the order of a sampler.

    Args:
        features: Of K copies of each image, (K, N, D); draws take the copies in turn.
        targets: (N,).
        batches: Which of them make up a step.
        device: Where batches go.
    """

    def __init__(self, features: Tensor, targets: Tensor, batches: EpochBatches, device: torch.device) -> None:
        self.features = features
        self.targets = targets
        self.batches = batches
        self.device = device

    def __len__(self) -> int:
        return len(self.batches)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        self.batches.set_epoch(epoch, start_step)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            index = batch.indices.to(self.features.device)
            places = torch.arange(batch.start, batch.start + batch.size)[batch.rows].to(index.device)
            copies = (places + self.batches.epoch) % len(self.features)
            yield self.features[copies, index].to(self.device), self.targets[index].to(self.device)


def feature_loader(stage: 'Stage', features: Tensor, targets: Tensor, sampler_option: str) -> FeatureLoader:
    """Batches of features in the order of the stage's sampler.

    Args:
        stage: The stage that trains on them.
        features: (K, N, D).
        targets: (N,).
        sampler_option: Flag that names the sampler, for the message.

    Raises:
        ConfigError: If the sampler does not take its options.
    """
    options, accelerator = stage.options, stage.accelerator
    try:
        sampler = stage.pipeline.sampler(targets.cpu(), options.schedule.epochs)
    except (TypeError, ValueError) as e:
        raise ConfigError(f'{sampler_option} {options.data.sampler!r}: {e}') from e
    batches = EpochBatches(
        sampler, options.data.batch_size, world=accelerator.num_processes, rank=accelerator.process_index)
    return FeatureLoader(features, targets, batches, accelerator.device)


@dataclass(frozen=True)
class Features:
    """Features of the training images.

    Attributes:
        values: Of K >= 1 copies of each image, (K, N, D).
        targets: Class of each image, (N,).
        facts: Network, images and transforms that they were computed with, as text by name.
    """
    values: Tensor
    targets: Tensor
    facts: dict[str, str]

    def save(self, file: Path) -> None:
        """Write ``file``: safetensors with ``features`` (K, N, D), ``targets`` (N,) and the facts as metadata."""
        tensors = {'features': self.values.cpu().contiguous(), 'targets': self.targets.cpu().contiguous()}
        with whole_file(file) as temporary:
            save_file(tensors, str(temporary), metadata={_FACTS: json.dumps(self.facts)})

    @classmethod
    def load(cls, file: Path, facts: dict[str, str]) -> 'Features':
        """Read a file that was written with the same facts.

        Raises:
            ConfigError: If it cannot be read, or is of another network, of other images or transforms.
        """
        try:
            with safe_open(str(file), 'pt') as f:
                found = json.loads((f.metadata() or {})[_FACTS])
                values, targets = f.get_tensor('features'), f.get_tensor('targets')
        except (OSError, KeyError, ValueError, SafetensorError) as e:
            raise ConfigError(f'{file} cannot be read as features of this script: {one_line(e)}') from e
        differing = [name for name in facts if found.get(name) != facts[name]]
        if differing:
            listing = '; '.join(f'{name}: {found.get(name)} there, {facts[name]} here' for name in differing)
            raise ConfigError(f'{file} holds other features ({listing}); leave out --feature-file to compute them')
        return cls(values, targets, found)


def training_features(stage: 'Stage', model: nn.Module) -> Features:
    """The features of the training images, from ``--feature-file``, from the folder of the run, or computed.

    Computed features are kept in ``features.safetensors`` of the run, so that a resumed run and later ones read them.

    Args:
        stage: Of the run.
        model: The frozen network, on the device.

    Raises:
        ConfigError: If a file is given that does not fit.
    """
    options, folder = stage.options, stage.folder
    facts = feature_facts(stage, model)
    if options.finetune.feature_file:
        return Features.load(Path(options.finetune.feature_file), facts)
    own = Path(folder.path) / FEATURE_FILE
    if all(gather_object([own.is_file()])):  # every process must take the same way
        return Features.load(own, facts)
    features = compute_features(stage, model, options.finetune.feature_copies, facts)
    if folder.writes and not options.run.dry_run:
        features.save(own)
    return features


def compute_features(stage: 'Stage', model: nn.Module, copies: int, facts: dict[str, str] | None = None) -> Features:
    """The features of the training images on every process.

    Args:
        stage: Its pipeline makes the images.
        model: The frozen network, on the device.
        copies: Augmented copies of each image; 0: the image under the evaluation transform.
        facts: See :class:`Features`.
    """
    images, taken = stage.data.train, []
    loader = stage.pipeline.augmented_in_order(images) if copies else stage.pipeline.evaluation(images)
    for copy in range(max(copies, 1)):
        loader.set_epoch(copy)
        values, targets = evaluate(FeatureModel(model), loader, stage.accelerator)
        taken.append(values[:len(images)])
    return Features(torch.stack(taken), targets[:len(images)], facts or {})


def feature_facts(stage: 'Stage', model: nn.Module) -> dict[str, str]:
    """Network, images and transforms of the features, as text by name."""
    options, config = stage.options, stage.pipeline.config
    copies, images = options.finetune.feature_copies, stage.data.train
    augmentation = f'{stage.pipeline.training_augmentation(images)}, seed {options.run.seed}' if copies else 'none'
    members = json.dumps(stage.data.members.get('train'))
    return {
        'network': f'{options.model.model}, weights {_checksum(model)}',
        'images': f'{options.data.dataset or Path(options.data.data_dir or "").name}, {len(images)} images, labels '
                  f'{zlib.crc32(images.targets.contiguous().numpy()):08x}, choice {zlib.crc32(members.encode()):08x}',
        'input': str({k: config[k] for k in sorted(config)}),
        'augmentation': augmentation, 'copies': str(copies),
    }


def _checksum(model: nn.Module) -> str:
    """CRC-32 of everything but the classifier, hexadecimal."""
    head: Any = find_classifier(model)
    left_out = {id(t) for t in head.state_dict(keep_vars=True).values()}
    checksum = 0
    for tensor in model.state_dict(keep_vars=True).values():
        if id(tensor) not in left_out:
            checksum = zlib.crc32(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy(), checksum)
    return f'{checksum:08x}'

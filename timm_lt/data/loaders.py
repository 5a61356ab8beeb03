"""Loaders that yield (input, target) on the device: from memory, or from files through worker processes.

Both are deterministic functions of (seed, epoch, step) for any number of workers and processes. Both start at any step
of an epoch, so a resumed run sees the images of an uninterrupted run.
"""

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from .._seeding import on_cpu, seeded
from .augment import BatchAugment
from .batches import Batch, EpochBatches, EvalBatches
from .memory import InMemoryImages
from .reading import ImageReadError, read_sample
from .subset import ImageSubset
from .transforms import Augmentation, MultiView

__all__ = ['MemoryLoader', 'SeededImages', 'WorkerLoader', 'create_eval_loader', 'create_train_loader']

Batches = EpochBatches | EvalBatches


class _Loader:
    """Common base of both loaders."""

    def __init__(self, batches: Batches, augment: BatchAugment, device: torch.device | str) -> None:
        self.batches = batches
        self.augment = augment
        self.device = torch.device(device)
        self.training = isinstance(batches, EpochBatches)

    def __len__(self) -> int:
        """Steps of a whole epoch on this process."""
        return len(self.batches)

    def set_epoch(self, epoch: int, start_step: int = 0) -> None:
        """Choose the epoch of the next iteration and the step that it starts with (training only)."""
        if isinstance(self.batches, EpochBatches):
            self.batches.set_epoch(epoch, start_step)

    def _finish(self, images: Tensor, batch: Batch) -> Tensor:
        with on_cpu():
            if not self.training:
                return self.augment.normalize(images)
            return self.augment(images, self.batches.epoch, batch.step, batch.size, batch.rows, batch.repeated)


class MemoryLoader(_Loader):
    """Batches of images kept in memory, augmented and normalised as a whole on the device.

    Args:
        images: The images; moved to the device once. On Apple's GPUs, which have no float64, they stay on the CPU.
        batches: :class:`EpochBatches` for training, :class:`EvalBatches` for evaluation.
        augment: Augmentation and normalisation; evaluation only normalises.
        device: Where batches are made.
    """

    def __init__(
            self,
            images: InMemoryImages,
            batches: Batches,
            augment: BatchAugment,
            device: torch.device | str = 'cpu',
    ) -> None:
        super().__init__(batches, augment, device)
        home = torch.device('cpu') if self.device.type == 'mps' else self.device
        self.images = images.images.to(home)
        self.targets = images.targets.to(home)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for batch in self.batches:
            indices = batch.indices.to(self.images.device, non_blocking=True)
            input = self._finish(self.images.index_select(0, indices), batch)
            yield input.to(self.device), self.targets.index_select(0, indices).to(self.device)


class WorkerLoader(_Loader):
    """Batches of images that worker processes read and transform one by one; the rest happens on the device.

    Args:
        dataset: Map-style dataset whose transform gives uint8 tensors (C, H, W), or (V, C, H, W) for several views.
        batches: :class:`EpochBatches` for training, :class:`EvalBatches` for evaluation.
        augment: Cutout, erasing and normalisation; evaluation only normalises.
        device: Where batches go.
        seed: Decides the random transforms, with epoch and place in the epoch's order.
        workers: Worker processes; 0: this one.
    """

    def __init__(
            self,
            dataset: Any,
            batches: Batches,
            augment: BatchAugment,
            device: torch.device | str = 'cpu',
            *,
            seed: int = 0,
            workers: int = 0,
    ) -> None:
        super().__init__(batches, augment, device)
        self._keys = _Keys(batches)
        self.loader = DataLoader(
            SeededImages(dataset, seed),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=_collate,
            pin_memory=self.device.type == 'cuda',
            persistent_workers=workers > 0,
            # an own generator: the default draws a seed from torch's global one each time an epoch starts or resumes
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for images, targets in _without_traceback(self.loader):
            images = images.to(self.device, non_blocking=True)
            yield self._finish(images, self._keys.issued.popleft()), targets.to(self.device, non_blocking=True)


def _without_traceback(loader: DataLoader) -> Iterator[Any]:
    """The DataLoader gives an error of a worker the worker's traceback as its text; keep the message."""
    try:
        with on_cpu():
            batches = iter(loader)  # draws a seed and starts the workers
        yield from batches
    except ImageReadError as e:
        text = str(e).rsplit(f'{ImageReadError.__name__}: ', 1)[-1].strip()
        raise ImageReadError(
            f"{text}. Repair or remove it, or leave out such images with bad_images='skip' (--bad-images skip)") from e


class _Keys:
    """Keys of :class:`SeededImages` for each step; every epoch reads them again, also with persistent workers.

    Attributes:
        issued: Steps whose keys went to the workers (which run ahead) and whose images have not come back.
    """

    def __init__(self, batches: Batches) -> None:
        self.batches = batches
        self.issued: deque[Batch] = deque()

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[list[tuple[int, int, int]]]:
        self.issued.clear()
        for batch in self.batches:
            self.issued.append(batch)
            places = range(batch.start, batch.start + batch.size)[batch.rows]
            yield [(i, self.batches.epoch, place) for i, place in zip(batch.indices.tolist(), places)]


class SeededImages(Dataset):
    """Wraps a dataset so that its random transforms depend on a key and nothing else.

    ``dataset[index, epoch, place]`` seeds the global generators of Python, numpy and torch, which PIL transforms use,
    by (seed, epoch, place). It restores them afterwards.

    Args:
        dataset: Map-style dataset of (image, label).
        seed: See above.
    """

    def __init__(self, dataset: Any, seed: int = 0) -> None:
        self.dataset = dataset
        self.seed = seed

    def __len__(self) -> int:
        return len(self.dataset)

    def __getitem__(self, key: tuple[int, int, int]) -> tuple[Any, int]:
        index, epoch, place = key
        with on_cpu(), seeded((self.seed, epoch, place)):
            return read_sample(self.dataset, index)


def _collate(samples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor]:
    images, targets = zip(*samples)
    if not isinstance(images[0], Tensor) or images[0].dtype != torch.uint8:
        raise TypeError('the transform of a WorkerLoader must give uint8 tensors (C, H, W); see Augmentation')
    return torch.stack(images), torch.tensor(targets, dtype=torch.int64, device='cpu')


def create_train_loader(
        dataset: Any,
        sampler: Any,
        augmentation: Augmentation,
        batch_size: int,
        *,
        device: torch.device | str = 'cpu',
        world: int = 1,
        rank: int = 0,
        seed: int = 0,
        workers: int = 0,
        drop_last: bool = True,
        transform: Callable | None = None,
) -> MemoryLoader | WorkerLoader:
    """The faster loader that the images and the augmentation allow.

    Args:
        dataset: :class:`InMemoryImages` or another map-style dataset, see :func:`keep_in_memory`.
        sampler: Order of the images, see :class:`EpochBatches`.
        augmentation: What is done to them.
        batch_size: Images of a step on one process.
        device: Where batches go.
        world: Number of processes.
        rank: This process.
        seed: Seed of the augmentation.
        workers: Worker processes where images are transformed one by one.
        drop_last: See :class:`EpochBatches`.
        transform: Replaces ``augmentation`` up to Cutout, e.g. ``three_views(augmentation)``.
    """
    with on_cpu():
        batches = EpochBatches(sampler, batch_size, world=world, rank=rank, drop_last=drop_last)
        views = augmentation if transform is None else transform
        in_memory = isinstance(dataset, InMemoryImages)
        if in_memory and isinstance(views, (Augmentation, MultiView)) and views.takes(dataset.image_size):
            return MemoryLoader(dataset, batches, views.batch_augment(seed, whole=True), device)
        dataset = _with_transform(dataset, augmentation.image_transform() if transform is None else transform)
        return WorkerLoader(dataset, batches, augmentation.batch_augment(seed), device, seed=seed, workers=workers)


def create_eval_loader(
        dataset: Any,
        mean: Any,
        std: Any,
        batch_size: int,
        *,
        transform: Callable | None = None,
        device: torch.device | str = 'cpu',
        world: int = 1,
        rank: int = 0,
        workers: int = 0,
) -> MemoryLoader | WorkerLoader:
    """Loader that gives every image exactly once over all processes, normalised.

    Args:
        dataset: :class:`InMemoryImages` that already have the input size, or another map-style dataset.
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel.
        batch_size: Images of a step on one process.
        transform: :func:`eval_transform`, for images that are not in memory.
        device: Where batches go.
        world: Number of processes.
        rank: This process.
        workers: Worker processes.
    """
    with on_cpu():
        batches = EvalBatches(len(dataset), batch_size, world=world, rank=rank)
        augment = BatchAugment(mean, std)
        if isinstance(dataset, InMemoryImages) and transform is None:
            return MemoryLoader(dataset, batches, augment, device)
        if transform is None:
            raise ValueError('images that are not in memory need a transform, see eval_transform')
        return WorkerLoader(_with_transform(dataset, transform), batches, augment, device, workers=workers)


def _with_transform(dataset: Any, transform: Callable | MultiView) -> Any:
    """A copy of the dataset with this transform; the dataset itself, which others may use, keeps its own."""
    if isinstance(dataset, InMemoryImages):
        return InMemoryImages(dataset.images, dataset.targets, dataset.class_names, transform)
    dataset = ImageSubset(dataset)
    dataset.transform = transform
    return dataset

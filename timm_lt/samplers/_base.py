"""Base of the samplers: exact quotas, class-aware cycling, division among processes, resume in mid-epoch.

A sampler states a law: the share of each class among the draws of an epoch. The rest is here and the same for all:

1. The quota of class c is ``M * share_c``, rounded down or up at random with exactly that expectation (systematic
   rounding). The quotas sum to the epoch length M, and no class is off by one draw or more.
2. Order of the classes within the epoch: a random one.
3. Images of a class come in a random order of all of them, then in another. Each is drawn once before any is drawn
  again.

All of it is a function of (seed, epoch) and nothing else: each epoch starts its own cycles.

Source: written from the papers of the laws. Differs from released code: those draw classes and images independently and
with replacement. This has the same expectation and more variance.
"""

import math
import warnings
import zlib
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Sampler

from .._labels import read_labels
from .._validate import check_option, check_whole
from ..class_distribution import ClassDistribution

CPU = torch.device('cpu')  # of every index and draw, whatever torch's default device is


class LongTailSampler(Sampler[int]):
    """Base of the samplers; a subclass writes :meth:`class_shares` and, if need be, :meth:`draws_per_epoch`.

    Args:
        targets: Labels of the training images, (N,), whole numbers in [0, C): a tensor, an array, a column, a list.
        seed: With the epoch it decides everything, through an own generator; global generators are not touched.
        num_replicas: Number W of processes among which the sampler itself divides the epoch. None: it does not divide,
            every process sees the whole order, and the loader (Accelerate) divides it. Never both, see
            :func:`check_not_divided`.
        rank: This process, in [0, W); given exactly when ``num_replicas`` is.
        num_samples: Draws M in an epoch, over all processes; None: the N of the images, unless the law says otherwise.
        drop_last: True drops the last M mod W draws where M is no multiple of W. False repeats the first draws of the
            epoch, so that all processes have ceil(M / W).
        num_classes: C; None takes the largest label + 1.

    Under Accelerate (``prepare``) the loader alone sets the epoch. It calls :meth:`set_epoch` with its count at the
    start of each iteration. Set it by ``loader.set_epoch(epoch)``, also after a resume.

    Process r gets draws r, r + W, r + 2 W, ... of :meth:`order`. A step of all processes is therefore a window of it.

    Raises:
        ValueError: If there are no labels, a label is negative or a class has no image. Also if an option is out of
            range.
    """

    needs_every_class = True
    law_options: tuple[str, ...] = ()  # attributes that the law depends on; a state is of one law only

    def __init__(
            self,
            targets: Sequence[int] | np.ndarray | Tensor,
            *,
            seed: int = 0,
            num_replicas: int | None = None,
            rank: int | None = None,
            num_samples: int | None = None,
            drop_last: bool = False,
            num_classes: int | None = None,
    ) -> None:
        targets = read_labels(targets)
        distribution = ClassDistribution.from_targets(targets, num_classes)
        if self.needs_every_class or num_classes is not None:
            distribution.require_images()
        self.class_counts = distribution.counts
        self.seed = check_whole('seed', seed, 0)
        if (num_replicas is None) != (rank is None):
            raise ValueError(
                f'give both of num_replicas and rank or neither, got num_replicas={num_replicas}, rank={rank}')
        self.num_replicas = None if num_replicas is None else check_whole('num_replicas', num_replicas, 1)
        self.rank = None if rank is None else check_whole('rank', rank, 0)
        if self.num_replicas is not None and self.rank is not None and self.rank >= self.num_replicas:
            raise ValueError(
                f'rank must be in [0, {self.num_replicas - 1}] for num_replicas={self.num_replicas}, got {rank}')
        self.num_samples = self.draws_per_epoch() if num_samples is None else check_whole('num_samples', num_samples, 1)
        self.drop_last = check_option('drop_last', drop_last, (False, True))
        if not len(self):
            raise ValueError(
                f'drop_last=True leaves nothing: {self.num_samples} draws for {self.num_replicas} processes; '
                f'use fewer processes or drop_last=False')
        # images of class c: images_by_class[first_image[c]:first_image[c] + class_counts[c]]
        self.images_by_class = torch.sort(targets, stable=True).indices
        self.first_image = _starts(self.class_counts)
        self.epoch = 0
        self._start = 0  # where the next iteration begins, in draws of this process
        self._drawn = 0  # draws of the present epoch handed out by this process
        self._loaded = False  # a state was loaded, and its epoch has not been started
        self._checksum = zlib.crc32(targets.contiguous().numpy().data)

    # The law

    def class_shares(self, epoch: int) -> Tensor:
        """Share of each class among the draws of ``epoch``, (C,), float64, sum 1."""
        raise TypeError(f'{type(self).__name__} must define class_shares(epoch)')

    def draws_per_epoch(self) -> int:
        """Draws M of an epoch over all processes, where the caller does not say."""
        return int(self.class_counts.sum())

    # The order

    def order(self, epoch: int | None = None) -> Tensor:
        """Image indices of a whole epoch over all processes, (M,), int64; None is the present epoch."""
        epoch = self.epoch if epoch is None else check_whole('epoch', epoch, 0)
        state = np.random.SeedSequence((self.seed, epoch)).generate_state(1, np.uint64)
        generator = torch.Generator().manual_seed(int(state[0]))
        return self._draw(epoch, generator)

    def _draw(self, epoch: int, generator: torch.Generator) -> Tensor:
        classes = self._class_order(epoch, generator)
        images = self._cycle_images(torch.bincount(classes, minlength=len(self.class_counts)), generator)
        # the k-th place of a class in the order takes the k-th image of its cycle
        places = torch.sort(classes, stable=True).indices
        order = torch.empty_like(images)
        order[places] = images
        return order

    def _class_order(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Class of each draw, (M,)."""
        quotas = self._quotas(epoch, generator)
        classes = torch.repeat_interleave(torch.arange(len(quotas), device=CPU), quotas)
        return classes[torch.randperm(len(classes), generator=generator, device=CPU)]

    def _quotas(self, epoch: int, generator: torch.Generator) -> Tensor:
        """Draws of each class, (C,), int64, sum M."""
        return random_quotas(self.class_shares(epoch), self.num_samples, generator)

    def _cycle_images(self, quotas: Tensor, generator: torch.Generator) -> Tensor:
        """``quotas[c]`` images of each class in turn, (M,), sorted by class: full random rounds, the last one cut."""
        counts = self.class_counts
        rounds = -(-quotas // counts.clamp(min=1))
        drawn = rounds * counts  # >= quotas, and at most one round more
        classes = torch.repeat_interleave(torch.arange(len(counts), device=CPU), drawn)
        place = torch.arange(len(classes), device=CPU) - _starts(drawn)[classes]
        shuffled = shuffle_within(_starts(rounds)[classes] + place // counts[classes], generator)
        images = self.images_by_class[self.first_image[classes] + place % counts[classes]]
        return images[shuffled][place < quotas[classes]]

    # The sampler

    def __len__(self) -> int:
        """Draws of this process in a whole epoch, also when it was resumed in the middle."""
        if self.num_replicas is None:
            return self.num_samples
        if self.drop_last:
            return self.num_samples // self.num_replicas
        return math.ceil(self.num_samples / self.num_replicas)

    def __iter__(self) -> Iterator[int]:
        order = self.order()
        if self.num_replicas is not None and self.rank is not None:
            mine = torch.arange(self.rank, len(self) * self.num_replicas, self.num_replicas, device=CPU)
            order = order[mine % self.num_samples]
        start, self._start, self._loaded = self._start, 0, False
        self._drawn = start
        for index in order[start:].tolist():
            self._drawn += 1
            yield index

    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch of the next iteration; the loaded position stays if the epoch is the loaded one."""
        epoch = check_whole('epoch', epoch, 0)
        if epoch != self.epoch:
            if self._loaded and (epoch < self.epoch or 0 < self._start < len(self)):
                warnings.warn(
                    f'{type(self).__name__} has loaded draw {self._start} of epoch {self.epoch}, and is set to the '
                    f'start of epoch {epoch} before it has continued there. A loader prepared by Accelerate sets the '
                    f'epoch by its own count: call loader.set_epoch({self.epoch}) after loading the state',
                    stacklevel=2)
            self.epoch = epoch
            self._start = self._drawn = 0
            self._loaded = False

    def state_dict(self, position: int | None = None) -> dict[str, Any]:
        """State in mid-epoch, the same on every process.

        Args:
            position: Draws of this sampler that were used in the present epoch (of the whole order if it is not
                divided). None: the draws handed out. A loader with workers, or prepared by Accelerate, fetches ahead.
                Then pass the number of samples trained on, over all processes if the sampler is not divided.
        """
        position = self._drawn if position is None else check_whole('position', position, 0)
        if position > len(self):
            raise ValueError(f'position must be at most {len(self)}, the draws of a process, got {position}')
        return {
            'epoch': self.epoch,
            'position': position * (self.num_replicas or 1),
            'sampler': type(self).__name__,
            **{name: getattr(self, name) for name in self.law_options},
            'seed': self.seed,
            'num_samples': self.num_samples,
            'num_images': int(self.class_counts.sum()),
            'labels': self._checksum,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """The next iteration continues the saved epoch at the saved position, also on another number of processes.

        With a loader prepared by Accelerate call ``loader.set_epoch(state_dict['epoch'])`` afterwards. It would
        otherwise set its count, 0, and lose the position (with a warning).

        Raises:
            ValueError: If the state is of another sampler, seed or labels, or the position does not divide.
        """
        own = self.state_dict()
        missing = [key for key in ('epoch', 'position', 'sampler') if key not in state_dict]
        if missing:
            raise ValueError(f'sampler state lacks {missing}, it has {sorted(state_dict)}; pass what state_dict() gave')
        for key in own:
            # an option that is newer than the state had the value of the class attribute
            saved = state_dict.get(key, getattr(type(self), key, None))
            if key not in ('epoch', 'position') and saved != own[key]:
                raise ValueError(
                    f'sampler state was saved with {key}={saved}, this sampler has {own[key]}; build it as it was'
                    + (', on the same labels in the same order' if key == 'labels' else ''))
        replicas = self.num_replicas or 1
        if state_dict['position'] % replicas:
            raise ValueError(
                f"sampler state is at draw {state_dict['position']} of the epoch, which {replicas} processes do not "
                f'divide; resume on another number of processes, or at the start of the epoch')
        self.epoch = state_dict['epoch']
        self._start = self._drawn = min(state_dict['position'] // replicas, len(self))
        self._loaded = True


def check_not_divided(loader_or_sampler: Any) -> None:
    """Refuse a loader whose sampler divides the epoch among processes, before something else divides it again.

    ``Accelerator.prepare`` divides every loader. A sampler made with ``num_replicas`` (ours, torch's, timm's) already
    divides the epoch. Each process would then see only 1 / W of its part, and the other draws would silently be lost.

    Args:
        loader_or_sampler: A ``DataLoader``, timm's ``PrefetchLoader``, a batch sampler or a sampler.

    Raises:
        ValueError: If the sampler divides among more than one process.
    """
    seen = loader_or_sampler
    while seen is not None:
        replicas = getattr(seen, 'num_replicas', None)
        if replicas is not None and replicas > 1:
            raise ValueError(
                f'{type(seen).__name__} divides the epoch among {replicas} processes already, and the loader would be '
                f'divided again: most images would never be seen. Create the sampler without num_replicas and rank')
        # loader -> batch sampler -> (what wraps it) -> sampler
        seen = next((inner for name in ('loader', 'batch_sampler', 'sampler')
                     if (inner := getattr(seen, name, None)) is not None), None)


def shuffle_within(groups: Tensor, generator: torch.Generator) -> Tensor:
    """A permutation that shuffles the places of each group among themselves.

    Args:
        groups: Group of each place, (T,), int64, not decreasing.
        generator: Source of randomness.

    Returns:
        Indices, (T,): place i takes the entry of a random place of its group, each once.
    """
    shuffled = torch.randperm(len(groups), generator=generator, device=CPU)
    return shuffled[torch.sort(groups[shuffled], stable=True).indices]


def random_quotas(shares: Tensor, total: int, generator: torch.Generator) -> Tensor:
    """Whole numbers that sum to ``total``, each ``total * share`` rounded down or up with that expectation."""
    expected = shares.double() * (total / shares.double().sum())
    whole = torch.floor(expected + 1e-9 * expected.clamp(min=1))  # a product such as 2.9999999999 is meant to be 3
    # systematic rounding of the fractions, in a random order of the classes: one common offset, unit steps
    order = torch.randperm(len(shares), generator=generator, device=CPU)
    offset = torch.rand((), generator=generator, dtype=torch.float64, device=CPU)
    edges = (expected - whole).clamp(min=0)[order].cumsum(0)
    left = total - whole.sum()
    if left > 0:
        edges = edges * (left / edges[-1])
        edges[-1] = left
        whole[order] += torch.floor(edges + offset).diff(prepend=torch.zeros(1, dtype=torch.float64, device=CPU))
    return whole.long()


def _starts(sizes: Tensor) -> Tensor:
    """First place of each part when parts of these sizes follow each other."""
    return sizes.cumsum(0) - sizes

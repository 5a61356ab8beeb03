"""Memory bank: for every class the encoder at the epoch of its best feature quality.

Paper: Chen et al., "GKP+GSA", CVPR 2026, memory-based grouping.
Source: written from the paper.
Differs from the official code: that one keeps C whole state dicts (765 GB for iNaturalist 2018 and ResNet-50). Classes
with the same best epoch share one snapshot here, and a snapshot without a class is dropped. Similarities of classes
need only the snapshots' inner products, E x E for E distinct epochs. They are taken when a snapshot arrives.
"""

import copy
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from .._files import whole_file
from .._validate import check_option

__all__ = ['MemoryBank']

_CHUNK = 1 << 22  # elements summed in float64 at a time


def flatten(tensors: Iterable[Tensor], dtype: torch.dtype = torch.float32) -> Tensor:
    """One vector (P,) on the CPU, never sharing memory with the tensors."""
    return torch.cat([t.detach().reshape(-1).to(dtype) for t in tensors]).cpu()


def unflatten(vector: Tensor, like: Sequence[Tensor]) -> list[Tensor]:
    """Views of ``vector`` (P,) in the shapes of ``like``."""
    pieces = vector.split([t.numel() for t in like])
    return [piece.view_as(t) for piece, t in zip(pieces, like)]


def _dot(a: Tensor, b: Tensor) -> float:
    return sum(float(x.double() @ y.double()) for x, y in zip(a.split(_CHUNK), b.split(_CHUNK)))


class MemoryBank:
    """Best encoder of every class, stored once per epoch.

    Args:
        num_classes: C.
        directory: Folder for the snapshots of this run alone, one file per best epoch. None keeps them in host memory.
            Only :meth:`checkpointed` removes files, because a saved state may name them.
        dtype: ``'float32'`` or ``'bfloat16'`` (half the size; inner products and anchors are of the rounded values).
        stores: Whether this process keeps snapshots; scores and epochs are kept, and equal, on all processes.

    Memory: (distinct best epochs) x (encoder) on the host or on disk, never on the accelerator. Files that a checkpoint
    names stay on disk too.
    """

    def __init__(
            self,
            num_classes: int,
            directory: str | Path | None = None,
            dtype: str = 'float32',
            stores: bool = True,
    ) -> None:
        if num_classes < 1:
            raise ValueError(f'num_classes must be >= 1, got {num_classes}')
        self.num_classes = num_classes
        self.directory = None if directory is None else Path(directory)
        self.dtype = getattr(torch, check_option('dtype', dtype, ('float32', 'bfloat16')))
        self.stores = stores
        self.best_score = torch.full((num_classes,), float('nan'), dtype=torch.float64)
        self.best_epoch = torch.full((num_classes,), -1, dtype=torch.int64)
        self._snapshots: dict[int, Tensor] = {}
        self._gram: dict[tuple[int, int], float] = {}
        self._named: dict[str, list[int]] = {}  # epochs of the snapshots that each checkpoint needs

    @property
    def epochs(self) -> list[int]:
        """Epochs that some class uses, ascending."""
        return sorted(set(self.best_epoch.tolist()) - {-1})

    @property
    def is_filled(self) -> bool:
        """Whether every class has a snapshot."""
        return bool((self.best_epoch >= 0).all())

    def update(self, epoch: int, score: Tensor, parameters: Iterable[Tensor]) -> Tensor:
        """Take the parameters of this epoch for every class that never scored higher.

        A class without an entry takes the epoch even if its score is NaN, which means an undefined quality. A later
        score that is a number replaces such an entry.

        Args:
            epoch: Number of the epoch, larger than every one before.
            score: Quality of each class at this epoch, (C,), NaN where not defined.
            parameters: The encoder's parameters; copied.

        Returns:
            Mask (C,) of the classes that took this epoch.
        """
        score = torch.as_tensor(score, dtype=torch.float64).cpu()
        if score.shape != (self.num_classes,):
            raise ValueError(f'score must have shape ({self.num_classes},), got {tuple(score.shape)}')
        if self.epochs and epoch <= self.epochs[-1]:
            raise ValueError(f'epoch must be larger than {self.epochs[-1]}, the last one stored, got {epoch}')
        better = (self.best_epoch < 0) | (score > self.best_score) | (self.best_score.isnan() & ~score.isnan())
        if not bool(better.any()):
            return better
        self.best_score = torch.where(better, score, self.best_score)
        self.best_epoch = torch.where(better, epoch, self.best_epoch)
        self._drop_unused()
        if self.stores:
            self._store(epoch, flatten(parameters, self.dtype))
        return better

    def snapshot(self, epoch: int) -> Tensor:
        """The encoder at ``epoch`` as one vector (P,)."""
        if not self.stores:
            raise RuntimeError('this process keeps no snapshots (stores=False)')
        if self.directory is None:
            if epoch not in self._snapshots:
                raise KeyError(f'the bank holds no snapshot of epoch {epoch}; it holds {self.epochs}')
            return self._snapshots[epoch]
        path = self._path(epoch)
        if not path.exists():
            raise FileNotFoundError(
                f'snapshot {path} is missing; put the file back, or train again without --resume')
        return torch.load(path, map_location='cpu', weights_only=True)

    def snapshot_similarity(self) -> tuple[Tensor, Tensor]:
        """Cosine between the distinct snapshots, (E, E), float64, and the snapshot of each class, (C,), below E."""
        if not self.is_filled:
            raise RuntimeError('the bank is empty; call update first')
        epochs = self.epochs
        gram = torch.tensor(
            [[self._gram[min(a, b), max(a, b)] for b in epochs] for a in epochs], dtype=torch.float64)
        norm = gram.diagonal().clamp(min=torch.finfo(torch.float64).tiny).sqrt()
        cosine = (gram / norm[:, None] / norm).clamp(-1, 1)
        cosine.fill_diagonal_(1.0)
        return cosine, torch.searchsorted(torch.tensor(epochs), self.best_epoch)

    def similarity(self) -> Tensor:
        """Cosine between the stored parameters of the classes, (C, C), float64; 1 for classes that share a snapshot."""
        cosine, index = self.snapshot_similarity()
        return cosine[index][:, index]

    def anchor(self, classes: Tensor) -> Tensor:
        """Mean of the stored parameters of ``classes`` (indices), (P,), float32; each snapshot is read once."""
        epochs, counts = self.best_epoch[classes].unique(return_counts=True)
        if len(epochs) == 0:
            raise ValueError('an anchor needs at least one class')
        total = torch.zeros(())
        for epoch, count in zip(epochs.tolist(), counts.tolist()):
            piece = self.snapshot(epoch).to(torch.float32) * (count / len(classes))
            total = piece.add_(total)
        return total

    def state_dict(self) -> dict[str, Any]:
        """The whole state; snapshots are in it if they are in memory, and named by epoch if on disk."""
        return {
            'best_score': self.best_score.clone(),
            'best_epoch': self.best_epoch.clone(),
            'gram': copy.copy(self._gram),
            'snapshots': dict(self._snapshots),
            'named': copy.copy(self._named),
        }

    def checkpointed(self, name: str) -> None:
        """The present state is saved under ``name``: remove the files that neither it nor another checkpoint names."""
        self._named[name] = self.epochs
        if self.stores and self.directory is not None:
            kept = {self._path(epoch) for epochs in self._named.values() for epoch in epochs}
            for path in self.directory.glob('encoder_*.pt'):
                if path not in kept:
                    path.unlink(missing_ok=True)

    def forget_checkpoint(self, name: str) -> None:
        """No checkpoint ``name`` is in place: :meth:`checkpointed` may remove the files that it alone names."""
        self._named.pop(name, None)

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a state; snapshots on disk must lie in ``directory``."""
        if state['best_epoch'].shape != (self.num_classes,):
            raise ValueError(
                f'the state is of a bank of {len(state["best_epoch"])} classes, this one has {self.num_classes}')
        self.best_score = state['best_score'].clone()
        self.best_epoch = state['best_epoch'].clone()
        self._gram = dict(state['gram'])
        self._named = {**state['named'], 'last': self.epochs}
        self._snapshots = {}
        if not self.stores:
            return
        if self.directory is None:
            self._snapshots = {epoch: vector.clone() for epoch, vector in state['snapshots'].items()}
        else:
            for epoch, vector in state['snapshots'].items():
                self._write(epoch, vector)
        missing = [e for e in self.epochs if not (e in self._snapshots or self.directory and self._path(e).exists())]
        if missing:
            raise FileNotFoundError(
                f'snapshots of epochs {missing} are missing in {self.directory}; put the files back, or train again '
                f'without --resume')

    def _path(self, epoch: int) -> Path:
        return cast(Path, self.directory) / f'encoder_{epoch:04d}.pt'

    def _write(self, epoch: int, vector: Tensor) -> None:
        with whole_file(self._path(epoch)) as temporary:
            torch.save(vector, temporary)

    def _store(self, epoch: int, vector: Tensor) -> None:
        for other in self.epochs:
            self._gram[other, epoch] = _dot(vector if other == epoch else self.snapshot(other), vector)
        if self.directory is None:
            self._snapshots[epoch] = vector
        else:
            self._write(epoch, vector)

    def _drop_unused(self) -> None:
        used = set(self.epochs)
        self._snapshots = {e: v for e, v in self._snapshots.items() if e in used}
        self._gram = {pair: v for pair, v in self._gram.items() if used.issuperset(pair)}

"""The callback of GKP+GSA, which measures classes, stores encoders and renews groups at the end of an epoch.

Paper: Chen et al., "GKP+GSA", CVPR 2026. After each epoch the feature quality of a class decides whether the memory
bank stores the encoder for it. At set epochs the stored encoders decide new groups of classes. Each group gets an
anchor, the mean of its classes' stored encoders, and a diagonal Fisher there. The optimizer steps on ``alpha sum_k
L_gsa_k + (1 - alpha) sum_k L_gkp_k``.
Source: written from the paper.
Differs from the official code: quality and Fisher come from training images (or a validation part), where that code
reads the test set. The images have the evaluation transform, and their number per class is capped. Groups are renewed,
and one process keeps the bank. The same images give the BatchNorm statistics at an anchor before its Fisher, because an
anchor was never trained. ``limit_curvature`` cuts the curvature where a step of the largest learning rate would
overshoot the centre of the penalty. With groups of a few images lambda / |G_j| makes some elements so stiff that an
explicit step diverges on them.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from torch import Tensor

from .._classifier import find_classifier
from .._files import write_text
from .._unwrap import plain_model
from .._validate import check_class_counts, check_option, check_range, check_whole
from ..class_distribution import ClassDistribution
from ..optim import find_sharpness_aware
from ..optim.gsa import GSA
from ._anchors import anchors_and_fishers
from ._images import images_of_groups
from ._measure import measure_classes, plain_evaluation
from ._processes import rank
from .bank import MemoryBank
from .grouping import class_gradient_cosine, class_gradient_similarity, group_classes
from .penalty import QuadraticPenalty, alpha_schedule, group_coefficients

__all__ = ['GKP', 'encoder_parameters']

_logger = logging.getLogger(__name__)


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of a timm model that are not its classifier's.

    Raises:
        TypeError: If the model does not say which layer its classifier is.
    """
    classifier = find_classifier(model)
    if classifier is None:
        raise TypeError(
            f'GKP needs a model whose get_classifier() gives one layer; {type(model).__name__} has none or several')
    head = {id(p) for p in classifier.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in head]


class GKP:
    """Grouped knowledge preservation (Chen et al. 2026) as a callback of the training loop.

    Its optimizer is :class:`timm_lt.optim.GSA`. ``GSA(Z=0)`` steps on the plain loss and the penalty (GKP alone).
    ``strength=0`` leaves GSA with the groups of the bank (GSA alone). Until the first grouping the optimizer's own
    groups hold and there is no penalty. ``groups.json`` in the run folder lists the classes of every group and the
    epoch from which they hold.

    Args:
        class_counts: Training images per class, (C,), or a ``ClassDistribution``, whose class names are written too.
        loader: Images of the training or validation part with labels, on the device of the model. Each epoch reads
            every image once over all processes. Use the evaluation transform and an order that mixes classes.
        num_groups: G; 4 in the paper, 6 on ImageNet-LT.
        regroup_every: Epochs between two groupings, >= 1.
        regroup_epochs: Epochs, counted from 0, after which classes are grouped; replaces ``regroup_every``.
        strength: lambda of the penalty, >= 0; 100 in the paper, 10 in the released code. 0: no penalty, alpha is 1.
        alpha_start, alpha_end: First and last weight of the task loss.
        beta: Weight of the log variance in the feature quality.
        group_size: Divisor of the penalty of a group: the number of its training ``'samples'`` or ``'classes'``.
        limit_curvature: Cut the curvature at ``1 / ((1 - alpha_end) * learning rate)``, see above.
        fisher_images: Largest number of images for the Fisher of a group, over all processes.
        directory: Folder of the bank's snapshots, of this run alone; None: host memory.
        dtype: Of the snapshots: 'float32' or 'bfloat16'.
        splits: Masks (C,) by name, for the metrics; None: many, medium and few.
        seed: Of the clustering.
    """

    def __init__(
            self,
            class_counts: Any,
            loader: Iterable[tuple[Tensor, Tensor]],
            *,
            num_groups: int = 4,
            regroup_every: int = 10,
            regroup_epochs: Sequence[int] | None = None,
            strength: float = 100.0,
            alpha_start: float = 0.95,
            alpha_end: float = 0.6,
            beta: float = 0.5,
            group_size: str = 'samples',
            limit_curvature: bool = True,
            fisher_images: int = 64,
            directory: str | Path | None = None,
            dtype: str = 'float32',
            splits: dict[str, Tensor] | None = None,
            seed: int = 0,
    ) -> None:
        self.class_counts = check_class_counts(class_counts, who='GKP')
        self.class_names = getattr(class_counts, 'class_names', None)
        self.loader = loader
        self.num_groups = check_whole('num_groups', num_groups, 1)
        self.regroup_every = check_whole('regroup_every', regroup_every, 1)
        self.regroup_epochs = None
        if regroup_epochs is not None:
            if isinstance(regroup_epochs, str) or not isinstance(regroup_epochs, Iterable):
                raise TypeError(
                    f'regroup_epochs must be a list of epochs, counted from 0, such as [9, 19], got {regroup_epochs!r}')
            self.regroup_epochs = sorted(check_whole('an epoch of regroup_epochs', e, 0) for e in regroup_epochs)
        self.strength = check_range('strength', strength, 0)
        self.alpha_start = check_range('alpha_start', alpha_start, 0, 1)
        self.alpha_end = check_range('alpha_end', alpha_end, 0, 1)
        self.beta = check_range('beta', beta, 0)
        self.group_size = check_option('group_size', group_size, ('samples', 'classes'))
        self.limit_curvature = bool(limit_curvature)
        self.fisher_images = check_whole('fisher_images', fisher_images, 1)
        self.splits = ClassDistribution(self.class_counts).splits() if splits is None else splits
        self.seed = seed
        self.bank = MemoryBank(len(self.class_counts), directory, dtype, stores=rank() == 0)
        self.groups: Any = None  # (C,), None before the first grouping
        self.source = ''
        self.history: list[dict[str, Any]] = []
        self.limited = 0.0
        self.penalty: QuadraticPenalty | None = None
        self._loaded: dict[str, Any] | None = None

    # Called by the training loop

    def on_train_start(self, trainer: Any) -> None:
        optimizer = self._optimizer(trainer)
        if self._loaded is not None:
            self.penalty = QuadraticPenalty(encoder_parameters(self._model(trainer)))
            self.penalty.load_state_dict(self._loaded)
            self._loaded = None
        if self.groups is not None:
            optimizer.set_groups(self.groups)
        optimizer.set_penalty(self.penalty)
        if not self.history:
            self._note_groups(0, optimizer)
        self._write_groups(trainer)
        # a grouping after the last epoch has no effect
        if rank() == 0 and not any(self.regroups_after(epoch) for epoch in range(trainer.epochs - 1)):
            when = f'regroup_every={self.regroup_every}'
            if self.regroup_epochs is not None:
                when = f'regroup_epochs={self.regroup_epochs}'
            _logger.warning(
                'GKP never groups the classes before the last of %d epochs (%s): the first groups stay and there '
                'is no penalty; lower regroup_every or name earlier regroup_epochs', trainer.epochs, when)

    def on_epoch_start(self, trainer: Any, epoch: int) -> None:
        self._optimizer(trainer).set_penalty(self.penalty, self.alpha(epoch, trainer.epochs))

    def on_epoch_end(self, trainer: Any, epoch: int) -> dict[str, Any]:
        """Measure, remember and, at its epochs, group the classes; returns the metrics of the epoch."""
        model, optimizer = self._model(trainer), self._optimizer(trainer)
        encoder = encoder_parameters(model)
        row = self._training_metrics(optimizer)
        with plain_evaluation(model):
            quality, rows = measure_classes(
                model, self.loader, len(self.class_counts), self.beta, trainer.accelerator.autocast)
            self.bank.update(epoch, quality.score(), encoder)
            if self.regroups_after(epoch):
                self._regroup(model, encoder, optimizer, rows)
                self._preserve(model, encoder, optimizer)
                self._note_groups(epoch + 1, optimizer)
                self._write_groups(trainer)
        similarity = class_gradient_similarity(*rows, self.class_counts)
        for name, mask in self.splits.items():
            row[f'quality_{name}'] = quality.mean(mask)
            row[f'gradient_similarity_{name}'] = _mean(similarity[mask])
        row['bank_epochs'] = len(self.bank.epochs)
        return row

    def on_checkpoint(self, name: str) -> None:
        self.bank.checkpointed(name)

    def on_checkpoint_removed(self, name: str) -> None:
        self.bank.forget_checkpoint(name)

    def state_dict(self) -> dict[str, Any]:
        return {
            'bank': self.bank.state_dict(), 'groups': self.groups, 'source': self.source,
            'history': list(self.history), 'limited': self.limited,
            'penalty': None if self.penalty is None else self.penalty.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over a state; the penalty follows when training starts, with the model's parameters."""
        self.bank.load_state_dict(state['bank'])
        self.groups, self.source, self.limited = state['groups'], state['source'], state['limited']
        self.history = list(state.get('history', []))
        self._loaded = state['penalty']

    # Its parts

    def alpha(self, epoch: int, epochs: int) -> float:
        """Weight of the task loss in an epoch."""
        return alpha_schedule(epoch / epochs, self.alpha_start, self.alpha_end) if self.strength else 1.0

    def regroups_after(self, epoch: int) -> bool:
        if self.regroup_epochs is not None:
            return epoch in self.regroup_epochs
        return (epoch + 1) % self.regroup_every == 0

    def _regroup(
            self, model: nn.Module, encoder: Sequence[Tensor], optimizer: GSA, rows: tuple[Tensor, Tensor, Tensor],
    ) -> None:
        fallback = None
        if rank() == 0 and 1 < self.num_groups < len(self.class_counts) and len(self.bank.epochs) < self.num_groups:
            fallback = class_gradient_cosine(*rows, len(self.class_counts))
        self.groups, self.source = group_classes(self.bank, self.num_groups, fallback=fallback, seed=self.seed)
        optimizer.set_groups(self.groups)
        _logger.info('grouped %d classes into %s by %s', len(self.groups), self._group_sizes('classes'), self.source)

    def _note_groups(self, from_epoch: int, optimizer: GSA) -> None:
        groups = optimizer.groups
        classes = [(groups == k).nonzero().flatten().tolist() for k in range(optimizer.num_groups)]
        entry = {'from_epoch': from_epoch, 'grouped_by': self.source or optimizer.grouped_by, 'groups': classes}
        if self.class_names:
            entry['names'] = [[str(self.class_names[c]) for c in group] for group in classes]
        self.history.append(entry)

    def _write_groups(self, trainer: Any) -> None:
        folder = getattr(trainer, 'folder', None)
        if folder is not None and folder.writes:
            rows = ',\n'.join(json.dumps(entry) for entry in self.history)
            write_text(folder.path / 'groups.json', f'[\n{rows}\n]\n')

    def _group_sizes(self, what: str) -> list[int]:
        """Classes or training samples of each group."""
        count = torch.ones_like(self.class_counts) if what == 'classes' else self.class_counts
        size = torch.zeros(int(self.groups.max()) + 1, dtype=torch.int64)
        return size.index_add_(0, self.groups, count).tolist()

    def _preserve(self, model: nn.Module, encoder: list[nn.Parameter], optimizer: GSA) -> None:
        """Anchors, Fishers and the penalty of the present groups."""
        sizes = self._group_sizes(self.group_size)
        self.penalty = None
        if self.strength and len(sizes) > 1:
            self.penalty = QuadraticPenalty(encoder)
            coefficients = group_coefficients(sizes, self.strength)
            images = images_of_groups(self.loader, self.groups, self.fisher_images)
            for k, fisher, anchor in anchors_and_fishers(model, encoder, self.bank, self.groups, images):
                self.penalty.add(coefficients[k], fisher, anchor)
            if self.limit_curvature and self.alpha_end < 1:
                lr = max(group.get('initial_lr', group['lr']) for group in optimizer.param_groups)
                self.limited = self.penalty.limit(1 / max((1 - self.alpha_end) * lr, 1e-12))
        optimizer.set_penalty(self.penalty)

    def _training_metrics(self, optimizer: GSA) -> dict[str, Any]:
        """Metrics of the epoch that ends now, before a grouping."""
        sizes = torch.bincount(optimizer.groups).tolist()
        radii = optimizer.radii_of_last_step
        return {
            'alpha': optimizer.alpha,
            'penalty': 0.0 if self.penalty is None else float(self.penalty.value()),
            'penalty_limited': self.limited,
            'num_groups': len(sizes),
            'group_classes': '/'.join(str(n) for n in sizes),
            'group_images': '/'.join(str(n) for n in optimizer.samples_of_group),
            'grouped_by': self.source or optimizer.grouped_by,
            'radius_mean': sum(radii.values()) / len(radii) if radii else None,
            'radii': '/'.join(f'{radii[k]:.3g}' if k in radii else '-' for k in range(len(sizes))),
        }

    @staticmethod
    def _model(trainer: Any) -> nn.Module:
        return plain_model(trainer.model)

    @staticmethod
    def _optimizer(trainer: Any) -> GSA:
        optimizer = find_sharpness_aware(trainer.optimizer)
        if not isinstance(optimizer, GSA):
            raise TypeError("GKP needs the optimizer 'gsa' (with Z=0 it steps on the plain loss and the penalty)")
        return optimizer


def _mean(values: Tensor) -> float | None:
    values = values[~values.isnan()]
    return float(values.mean()) if values.numel() else None

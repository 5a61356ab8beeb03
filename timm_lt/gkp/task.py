"""The whole of GKP+GSA beside the steps: what is measured, remembered, grouped and preserved at the end of an epoch.

Paper: Chen et al., "GKP+GSA", CVPR 2026. At the end of an epoch the feature quality of every class decides whether the
memory bank takes the encoder for it; at set epochs the classes are grouped anew by what the bank holds, and each group
gets an anchor (mean of its classes' stored encoders) and a diagonal Fisher there. The optimizer steps on
``alpha sum_k L_gsa_k + (1 - alpha) sum_k L_gkp_k``.
Source: written from the paper.
Differs from the official code: quality and Fisher come from training images (or a validation part) under the evaluation
transform, a capped number per class, where that code reads the test set; groups are really renewed; one process keeps
the bank. BatchNorm statistics at an anchor, which never were the network's own, are estimated on the same images before
its Fisher is taken. The curvature of the penalty is cut where a step of the largest learning rate would overshoot the
penalty's centre (``limit_curvature``): with groups of a few images lambda / |G_j| makes some elements that stiff, and
an explicit step diverges on them.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

from .._files import write_text
from .._validate import check_class_counts, check_option, check_range
from ..class_distribution import ClassDistribution
from ..optim.gsa import GSA
from ..optim.stepping import find_sharpness_aware
from .bank import MemoryBank, unflatten
from .fisher import diagonal_fisher
from .grouping import class_gradient_cosine, class_gradient_similarity, group_classes, rows_per_class
from .penalty import GroupPenalty, QuadraticPenalty, alpha_schedule, group_coefficients
from .quality import QualityMeter

__all__ = ['GKP', 'capped_indices', 'encoder_parameters', 'images_per_class']

_logger = logging.getLogger(__name__)


def images_per_class(class_counts: Sequence[int] | Tensor, share: float = 0.1, least: int = 2) -> int:
    """The cap on images per class with which at most ``share`` of all images remain, at least ``least``."""
    counts = torch.as_tensor(class_counts)
    cap = least
    while int(counts.clamp(max=cap + 1).sum()) <= share * int(counts.sum()) and cap < int(counts.max()):
        cap += 1
    return cap


def capped_indices(targets: Tensor, cap: int, seed: int = 0) -> Tensor:
    """Positions of at most ``cap`` images of each class, drawn and put in an order by ``seed``, (N,), int64."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    ranked = torch.argsort(targets[order], stable=True)
    label = targets[order][ranked]
    place = torch.arange(len(label)) - torch.searchsorted(label, label)
    # back in the order of the draw, so that any first part of it is mixed
    return order[ranked[place < cap].sort().values]


def encoder_parameters(model: nn.Module) -> list[nn.Parameter]:
    """The trainable parameters of a timm model that are not its classifier's.

    Raises:
        TypeError: If the model does not say which layer its classifier is.
    """
    classifier = model.get_classifier() if hasattr(model, 'get_classifier') else None
    if not isinstance(classifier, nn.Module) or isinstance(classifier, nn.Identity):
        raise TypeError(f"GKP needs a model with one classifier, get_classifier(); {type(model).__name__} has none")
    head = {id(p) for p in classifier.parameters()}
    return [p for p in model.parameters() if p.requires_grad and id(p) not in head]


class GKP:
    """Grouped knowledge preservation as a callback of the training loop; its optimizer is :class:`timm_lt.optim.GSA`.

    ``GSA(Z=0)`` steps on the plain loss and the penalty (GKP alone); ``strength=0`` leaves GSA with the groups of the
    bank (GSA alone). Until the classes are first grouped, the optimizer's own groups hold and there is no penalty. The
    classes of every group, from each epoch on in which groups changed, stand in ``groups.json`` in the run folder.

    Args:
        class_counts: Training images per class, (C,), or a ``ClassDistribution``, whose class names are written too.
        loader: Images that the method may look at, with labels, on the device of the model: read once an epoch, each
            image once over all processes, evaluation transform, in an order that mixes classes. Never the test part.
        num_groups: G; 4 in the paper, 6 on ImageNet-LT.
        regroup_every: Group the classes anew after every so many epochs.
        regroup_epochs: Epochs, counted from 0, after which classes are grouped anew; replaces ``regroup_every``.
        strength: lambda of the penalty, >= 0; 100 in the paper, 10 in the released code. 0: no penalty, alpha is 1.
        alpha_start, alpha_end: First and last weight of the task loss.
        beta: Weight of the log variance in the feature quality.
        group_size: What divides the penalty of a group: its training ``'samples'`` or its ``'classes'``.
        limit_curvature: Cut the curvature at ``1 / ((1 - alpha_end) * learning rate)``, see above; not with GSA's
            ``variant='released'``.
        fisher_images: Images of each group that its Fisher is taken of, at most, over all processes.
        directory: Folder of the bank's snapshots, of this run alone; None: host memory.
        dtype: Of the snapshots: 'float32' or 'bfloat16'.
        splits: Masks (C,) by name, for the figures; None: many, medium and few.
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
        self.num_groups = _whole('num_groups', num_groups, 1)
        self.regroup_every = _whole('regroup_every', regroup_every, 1)
        self.regroup_epochs = None
        if regroup_epochs is not None:
            if isinstance(regroup_epochs, str) or not isinstance(regroup_epochs, Iterable):
                raise TypeError(
                    f'regroup_epochs must be a list of epochs, counted from 0, such as [9, 19], got {regroup_epochs!r}')
            self.regroup_epochs = sorted(_whole('an epoch of regroup_epochs', e, 0) for e in regroup_epochs)
        self.strength = check_range('strength', strength, 0)
        self.alpha_start = check_range('alpha_start', alpha_start, 0, 1)
        self.alpha_end = check_range('alpha_end', alpha_end, 0, 1)
        self.beta = check_range('beta', beta, 0)
        self.group_size = check_option('group_size', group_size, ('samples', 'classes'))
        self.limit_curvature = bool(limit_curvature)
        self.fisher_images = _whole('fisher_images', fisher_images, 1)
        self.splits = ClassDistribution(self.class_counts).splits() if splits is None else splits
        self.seed = seed
        self.bank = MemoryBank(len(self.class_counts), directory, dtype, stores=_rank() == 0)
        self.groups: Tensor | None = None
        self.source = ''
        self.history: list[dict[str, Any]] = []
        self.limited = 0.0
        self.penalty: QuadraticPenalty | GroupPenalty | None = None
        self._loaded: dict[str, Any] | None = None

    # Called by the training loop

    def on_train_start(self, trainer: Any) -> None:
        optimizer = self._optimizer(trainer)
        if self._loaded is not None:
            self.penalty = self._load_penalty(self._loaded, encoder_parameters(self._model(trainer)))
            self._loaded = None
        if self.groups is not None:
            optimizer.set_groups(self.groups)
        optimizer.set_penalty(self.penalty)
        if not self.history:
            self._note_groups(0, optimizer)
        self._write_groups(trainer)
        # after the last epoch it would come too late
        if _rank() == 0 and not any(self.regroups_after(epoch) for epoch in range(trainer.epochs - 1)):
            when = f'regroup_every={self.regroup_every}'
            if self.regroup_epochs is not None:
                when = f'regroup_epochs={self.regroup_epochs}'
            _logger.warning(
                'GKP never groups the classes anew before the last of %d epochs (%s): the first groups stay and there '
                'is no penalty; lower regroup_every or name earlier regroup_epochs', trainer.epochs, when)

    def on_epoch_start(self, trainer: Any, epoch: int) -> None:
        self._optimizer(trainer).set_penalty(self.penalty, self.alpha(epoch, trainer.epochs))

    def on_epoch_end(self, trainer: Any, epoch: int) -> dict[str, Any]:
        """Measure, remember and, at its epochs, group anew; returns the figures of the epoch."""
        model, optimizer = self._model(trainer), self._optimizer(trainer)
        encoder = encoder_parameters(model)
        row = self._figures_of_training(optimizer)
        with _plain_evaluation(model):
            quality, rows = self._measure(model, trainer.accelerator)
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

    def state_dict(self) -> dict[str, Any]:
        state = {'bank': self.bank.state_dict(), 'groups': self.groups, 'source': self.source,
                 'history': list(self.history), 'limited': self.limited, 'penalty': None}
        if isinstance(self.penalty, QuadraticPenalty):
            state['penalty'] = self.penalty.state_dict()
        elif self.penalty is not None:
            state['penalty'] = {'fishers': self.penalty.fishers, 'anchors': self.penalty.anchors,
                                'group_sizes': self.penalty.group_sizes}
        return state

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

    @torch.no_grad()
    def _measure(self, model: nn.Module, accelerator: Any) -> tuple[Any, tuple[Tensor, Tensor, Tensor]]:
        """Quality of every class, and features, residuals and labels of some images of each class, on the CPU."""
        classifier, seen = model.get_classifier(), []
        hook = classifier.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().float()))
        meter = QualityMeter(len(self.class_counts), self.beta)
        limit = -(-rows_per_class(len(self.class_counts)) // _world())
        taken = torch.zeros(len(self.class_counts), dtype=torch.int64)
        kept: list[tuple[Tensor, Tensor, Tensor]] = []
        try:
            for input, label in self.loader:
                with accelerator.autocast():
                    logits = model(input).float()
                features = seen.pop()
                seen.clear()
                meter.update(features, label)
                cpu = label.cpu()
                chosen = []
                for i, c in enumerate(cpu.tolist()):
                    if taken[c] < limit:
                        taken[c] += 1
                        chosen.append(i)
                if chosen:
                    index = torch.tensor(chosen, device=label.device)
                    residual = logits[index].softmax(1) - F.one_hot(label[index], logits.shape[1])
                    kept.append((features[index].cpu(), residual.cpu(), cpu[chosen]))
        finally:
            hook.remove()
        width = getattr(classifier, 'in_features', None) or (kept[0][0].shape[1] if kept else 0)
        meter.reduce(width, next(model.parameters()).device)
        rows = tuple(torch.cat(parts) for parts in zip(*_gather(kept)))
        return meter.compute(), rows

    def _regroup(self, model: nn.Module, encoder: Sequence[Tensor], optimizer: GSA, rows: tuple[Tensor, ...]) -> None:
        fallback = None
        if _rank() == 0 and 1 < self.num_groups < len(self.class_counts) and len(self.bank.epochs) < self.num_groups:
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
            released = optimizer.variant == 'released'
            penalty = QuadraticPenalty(encoder)
            fishers, anchors = [], []
            coefficients = group_coefficients(sizes, self.strength)
            for k, fisher, anchor in self._anchors_and_fishers(model, encoder, len(sizes)):
                if released:
                    fishers.append(fisher)
                    anchors.append(anchor)
                else:
                    penalty.add(coefficients[k], fisher, anchor)
            if self.limit_curvature and not released and self.alpha_end < 1:
                lr = max(group.get('initial_lr', group['lr']) for group in optimizer.param_groups)
                self.limited = penalty.limit(1 / max((1 - self.alpha_end) * lr, 1e-12))
            self.penalty = GroupPenalty(encoder, fishers, anchors, sizes, self.strength) if released else penalty
        optimizer.set_penalty(self.penalty)

    def _anchors_and_fishers(
            self, model: nn.Module, encoder: list[nn.Parameter], num_groups: int,
    ) -> Iterator[tuple[int, list[Tensor], list[Tensor]]]:
        images = self._images_of_groups(num_groups)
        everything = [torch.cat([x for x, _ in images if len(x)])] if any(len(x) for x, _ in images) else []
        live = [p.detach().clone() for p in encoder]
        buffers = [(b, b.clone()) for b in model.buffers()]
        device = encoder[0].device
        try:
            for k, (x, y) in enumerate(images):
                anchor = unflatten(self._anchor((self.groups == k).nonzero().flatten(), encoder), encoder)
                anchor = [a.to(device=p.device, dtype=p.dtype) for a, p in zip(anchor, encoder)]
                with torch.no_grad():
                    torch._foreach_copy_(encoder, anchor)
                _estimate_batchnorm(model, [part for x_all in everything for part in x_all.split(128)], device)
                pairs = [(a.to(device), b.to(device)) for a, b in zip(x.split(64), y.split(64)) if len(b)]
                yield k, diagonal_fisher(model, pairs, F.cross_entropy, encoder), anchor
        finally:
            with torch.no_grad():
                torch._foreach_copy_(encoder, live)
                for buffer, value in buffers:
                    buffer.copy_(value)

    def _images_of_groups(self, num_groups: int) -> list[tuple[Tensor, Tensor]]:
        """The first images of each group that this process's share of the loader has, on the CPU."""
        limit = -(-self.fisher_images // _world())
        found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_groups)]
        missing = [limit] * num_groups
        shape, dtype = (0,), torch.float32
        for input, label in self.loader:
            group = self.groups[label.cpu()]
            shape, dtype = (0, *input.shape[1:]), input.dtype
            for k in range(num_groups):
                index = (group == k).nonzero().flatten()[:missing[k]].to(label.device)
                if len(index):
                    found[k].append((input[index].cpu(), label[index].cpu()))
                    missing[k] -= len(index)
            if not any(missing):
                break
        empty = (torch.zeros(shape, dtype=dtype), torch.zeros(0, dtype=torch.int64))
        return [tuple(torch.cat(part) for part in zip(*pairs)) if pairs else empty for pairs in found]

    def _anchor(self, classes: Tensor, encoder: Sequence[Tensor]) -> Tensor:
        if _world() == 1:
            return self.bank.anchor(classes)
        device = encoder[0].device
        vector = torch.empty(sum(p.numel() for p in encoder), device=device)
        if self.bank.stores:
            vector.copy_(self.bank.anchor(classes))
        dist.broadcast(vector, src=0)
        return vector

    def _figures_of_training(self, optimizer: GSA) -> dict[str, Any]:
        """Figures of the epoch that ends now, before classes are grouped anew."""
        sizes = torch.bincount(optimizer.groups).tolist()
        radii = optimizer.radii_of_last_step
        penalty = self.penalty.quadratic() if isinstance(self.penalty, GroupPenalty) else self.penalty
        return {
            'alpha': optimizer.alpha,
            'penalty': 0.0 if penalty is None else float(penalty.value()),
            'penalty_limited': self.limited,
            'num_groups': len(sizes),
            'group_classes': '/'.join(str(n) for n in sizes),
            'group_images': '/'.join(str(n) for n in optimizer.samples_of_group),
            'grouped_by': self.source or optimizer.grouped_by,
            'radius_mean': sum(radii.values()) / len(radii) if radii else None,
            'radii': '/'.join(f'{radii[k]:.3g}' if k in radii else '-' for k in range(len(sizes))),
        }

    def _load_penalty(self, state: dict[str, Any], encoder: list[nn.Parameter]) -> QuadraticPenalty | GroupPenalty:
        if 'curvature' in state:
            penalty = QuadraticPenalty(encoder)
            penalty.load_state_dict(state)
            return penalty
        fishers, anchors = ([[t.to(p.device) for t, p in zip(row, encoder)] for row in state[name]]
                            for name in ('fishers', 'anchors'))
        return GroupPenalty(encoder, fishers, anchors, state['group_sizes'], self.strength)

    @staticmethod
    def _model(trainer: Any) -> nn.Module:
        model = trainer.accelerator.unwrap_model(trainer.model, keep_torch_compile=False)
        return model.plain_model() if hasattr(model, 'plain_model') else model

    @staticmethod
    def _optimizer(trainer: Any) -> GSA:
        optimizer = find_sharpness_aware(trainer.optimizer)
        if not isinstance(optimizer, GSA):
            raise TypeError("GKP needs the optimizer 'gsa' (with Z=0 it steps on the plain loss and the penalty)")
        return optimizer


def _whole(name: str, value: Any, least: int) -> int:
    if check_range(name, value, least) != int(value):
        raise ValueError(f'{name} must be a whole number >= {least}, got {value}')
    return int(value)


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def _world() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def _gather(kept: list[Any]) -> list[Any]:
    if _world() == 1:
        return kept
    parts: list[Any] = [None] * _world()
    dist.all_gather_object(parts, kept)
    return [entry for part in parts for entry in part]


def _mean(values: Tensor) -> float | None:
    values = values[~values.isnan()]
    return float(values.mean()) if values.numel() else None


@contextmanager
def _plain_evaluation(model: nn.Module) -> Iterator[None]:
    """Evaluation mode, without the autocast that Accelerate puts around ``forward``; both as they were afterwards."""
    modes = [(m, m.training) for m in model.modules()]
    wrapped = model.__dict__.pop('forward', None)
    model.eval()
    try:
        yield
    finally:
        if wrapped is not None:
            model.forward = wrapped
        for m, training in modes:
            m.training = training


def _estimate_batchnorm(model: nn.Module, batches: list[Tensor], device: torch.device) -> None:
    """Running statistics of BatchNorm anew, from these images; other layers act as in evaluation."""
    layers = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)
              and not isinstance(m, nn.SyncBatchNorm) and m.track_running_stats]
    if not layers or not batches:
        return
    momenta = [m.momentum for m in layers]
    for m in layers:
        m.reset_running_stats()
        m.momentum = None  # an average over all batches
        m.training = True
    try:
        with torch.no_grad():
            for batch in batches:
                model(batch.to(device))
    finally:
        for m, momentum in zip(layers, momenta):
            m.momentum, m.training = momentum, False

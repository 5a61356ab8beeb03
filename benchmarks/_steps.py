"""Steps to be timed: networks, plain steps, ours, and the published structures written with plain loops."""

import math
from collections.abc import Callable, Sequence

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch import Tensor

import timm_lt  # noqa: F401  registers networks, losses and optimizers
from timm_lt.gkp import QuadraticPenalty
from timm_lt.optim import BatchClosure

Step = Callable[[], object]
TAIL_SHARE = 0.15


def class_counts(num_classes: int, largest: int = 500, imbalance_ratio: float = 100.0) -> list[int]:
    """Exponential profile; at least one image a class."""
    return [max(1, int(largest * imbalance_ratio ** (-c / max(num_classes - 1, 1)))) for c in range(num_classes)]


def long_tailed_labels(counts: Sequence[int], batch: int) -> Tensor:
    """Labels as an instance-balanced loader draws them, (B,)."""
    return torch.multinomial(torch.tensor(counts, dtype=torch.float64), batch, replacement=True)


def labels_of_groups(counts: Sequence[int], batch: int, groups: Tensor) -> Tensor:
    """Long-tailed labels, (B,), of which one at least belongs to each group of classes."""
    labels = long_tailed_labels(counts, batch)
    present = [int((groups == k).nonzero()[0]) for k in range(int(groups.max()) + 1)]
    return torch.cat([torch.tensor(present), labels[len(present):]])


def head_and_tail(counts: Sequence[int], batch: int, eta: int) -> Tensor:
    """Labels of which 15% belong to classes of fewer than ``eta`` images, (B,)."""
    tail = torch.tensor([n < eta for n in counts])
    chance = torch.tensor(counts, dtype=torch.float64)
    number = round(TAIL_SHARE * batch)
    head = torch.multinomial(chance * ~tail, batch - number, replacement=True)
    return torch.cat([head, torch.multinomial(chance * tail, number, replacement=True)])[torch.randperm(batch)]


def group_norm(module: nn.Module) -> nn.Module:
    """GroupNorm in the place of every BatchNorm; activations inside it stay."""
    for name, child in module.named_children():
        if isinstance(child, nn.BatchNorm2d):
            layers = [nn.GroupNorm(min(8, child.num_features), child.num_features)]
            layers += [m for m in (getattr(child, 'drop', None), getattr(child, 'act', None)) if m is not None]
            setattr(module, name, nn.Sequential(*layers))
        else:
            group_norm(child)
    return module


def network(name: str, num_classes: int, device: torch.device, norm: str = 'batch') -> nn.Module:
    """A network in training mode; ``norm``: 'batch', or 'group' with GroupNorm in its place."""
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=num_classes)
    return (group_norm(model) if norm == 'group' else model).to(device).train()


def optimizer_step(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        name: str,
        options: dict,
        counts: Sequence[int] | None = None,
        epoch: int = 0,
        penalty: bool = False,
        criterion: nn.Module | None = None,
) -> Step:
    """A step of a registered optimizer around ``momentum``.

    The learning rate is 0: the weights stay, so that every call does the same work, and one network serves all.
    """
    options = dict(options) if counts is None else {**options, 'class_counts': counts}
    optimizer = timm.optim.create_optimizer_v2(model, name, lr=0.0, weight_decay=5e-4, **options)
    if hasattr(optimizer, 'set_epoch'):
        optimizer.set_epoch(epoch, 10)
    if penalty:
        quadratic = QuadraticPenalty(list(model.parameters()))
        quadratic.add(1.0, [p.detach().square() for p in model.parameters()], [p.detach() for p in model.parameters()])
        optimizer.set_penalty(quadratic, alpha=0.8)
    criterion = criterion or nn.CrossEntropyLoss()
    return lambda: optimizer.step(BatchClosure(model, criterion, images, labels))


def plain_parts_step(
        model: nn.Module,
        images: Tensor,
        labels: Tensor,
        part_of_class: Sequence[int],
        radii: Sequence[float],
        projected: bool = False,
) -> Step:
    """Parts of a batch in plain loops: forward and backward of the whole batch for each part's loss, perturb, again.

    Args:
        part_of_class: Part of each class, (C,).
        radii: Of each part; 0: its gradient is taken where the weights are.
        projected: Perturb along what the projection on the batch's gradient leaves, as GSA does.
    """
    params = [p for p in model.parameters() if p.requires_grad]
    base = torch.optim.SGD(params, lr=0.0, momentum=0.9, weight_decay=5e-4)
    part = torch.tensor(part_of_class, device=labels.device)[labels]

    def gradient(k: int) -> tuple[Tensor, ...]:
        loss = F.cross_entropy(model(images), labels, reduction='none')[part == k].sum() / len(labels)
        return torch.autograd.grad(loss, params)

    def step() -> None:
        present = [k for k in range(len(radii)) if bool((part == k).any())]
        first = {k: gradient(k) for k in present}
        batch = [sum(g) for g in zip(*first.values())]
        total = [torch.zeros_like(p) for p in params]
        for k in present:
            g = first[k]
            if radii[k]:
                if projected:
                    share = sum((a * b).sum() for a, b in zip(g, batch)) / sum(b.square().sum() for b in batch)
                    g = [a - share * b for a, b in zip(g, batch)]
                length = torch.norm(torch.stack([t.norm() for t in g])) + 1e-12
                eps = [t * (radii[k] / length) for t in g]
                with torch.no_grad():
                    for p, e in zip(params, eps):
                        p.add_(e)
                g = gradient(k)
                with torch.no_grad():
                    for p, e in zip(params, eps):
                        p.sub_(e)
            for t, a in zip(total, g):
                t.add_(a)
        for p, t in zip(params, total):
            p.grad = t
        base.step()
    return step


def released_gsa_step(model: nn.Module, images: Tensor, labels: Tensor, groups: Tensor, samples: list[int]) -> Step:
    """GSA as released: one backward for all groups, loops over groups and parameters, one joint perturbation."""
    params = [p for p in model.parameters() if p.requires_grad]
    base = torch.optim.SGD(params, lr=0.0, momentum=0.9, weight_decay=5e-4)
    group = groups.to(labels.device)[labels]
    buffers: dict[tuple[int, int], Tensor] = {}

    def step() -> None:
        losses = F.cross_entropy(model(images), labels, reduction='none')
        base.zero_grad()
        sum(losses[group == k].mean() for k in range(len(samples)) if bool((group == k).any())).backward()
        length = torch.norm(torch.stack([p.detach().norm() for p in params]))
        size = sum(p.numel() for p in params)
        ascent = [torch.zeros_like(p) for p in params]
        for k in range(len(samples)):
            share = float((group == k).float().mean())
            if share == 0:
                continue
            for i, p in enumerate(params):
                if (k, i) in buffers:
                    q = p.grad.clone()
                    p.grad.sub_(buffers[k, i])
                    buffers[k, i] = buffers[k, i] * 0.9 + q * 0.1
                else:
                    buffers[k, i] = p.grad.clone()
            norm = torch.norm(torch.stack([(p.detach().abs() * p.grad).norm() for p in params])) + 1e-12
            radius = 0.1 * (length / (2 * norm)).sqrt() * (size * max(samples[k] - 1, 1)) ** -0.25
            radius = float(radius.clamp(2e-3, 3e-3))
            for e, p in zip(ascent, params):
                e.add_(p.detach().square() * p.grad * (share * size ** 0.5 * radius / norm))
        with torch.no_grad():
            for p, e in zip(params, ascent):
                p.add_(e)
        base.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        with torch.no_grad():
            for p, e in zip(params, ascent):
                p.sub_(e)
        base.step()
    return step


def looped_ccsam_loss(
        head: nn.Module, features: Tensor, labels: Tensor, counts: Sequence[int], scale: float = 1e-6) -> Tensor:
    """CC-SAM as released: one class after the other through the classifier."""
    clean = F.cross_entropy(head(features), labels)
    tensors = list(head.parameters())
    k = sum(t.numel() for t in tensors)
    norm = torch.sqrt(sum(t.detach().square().sum() for t in tensors))
    perturbed = 0
    for c in labels.unique().tolist():
        rows = labels == c
        loss = F.cross_entropy(head(features[rows]), labels[rows])
        gradients = torch.autograd.grad(loss, tensors, retain_graph=True)
        moved = []
        for t, g in zip(tensors, gradients):
            rho = (norm / (2 * g.norm())).sqrt() * (k * max(counts[c] - 1, 1)) ** -0.25
            moved.append(t + scale * math.sqrt(k) * rho * g / g.norm())
        perturbed = perturbed + F.cross_entropy(F.linear(features[rows], *moved), labels[rows], reduction='sum')
    return 0.5 * clean + 0.5 * perturbed / len(labels)


def looped_ccsam_step(model: nn.Module, images: Tensor, labels: Tensor, counts: Sequence[int]) -> Step:
    base = torch.optim.SGD(model.parameters(), lr=0.0, momentum=0.9, weight_decay=5e-4)

    def step() -> None:
        base.zero_grad()
        features = model.forward_head(model.forward_features(images), pre_logits=True)
        looped_ccsam_loss(model.get_classifier(), features, labels, counts).backward()
        base.step()
    return step


class HeadOnly(nn.Module):
    """A classifier on features (B, D) that want a gradient, as those of a backbone do."""

    def __init__(self, dim: int, num_classes: int) -> None:
        super().__init__()
        self.fc = nn.Linear(dim, num_classes)

    def get_classifier(self) -> nn.Module:
        return self.fc

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(x)

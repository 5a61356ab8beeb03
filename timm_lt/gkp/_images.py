"""The choice of images: a capped number of each class, and the first ones of each group."""

from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ._processes import world_size


def images_per_class(class_counts: Sequence[int] | Tensor, share: float = 0.1, least: int = 2) -> int:
    """The cap on images per class with which at most ``share`` of all images remain, at least ``least``."""
    counts = torch.as_tensor(class_counts, device='cpu')
    cap = least
    while int(counts.clamp(max=cap + 1).sum()) <= share * int(counts.sum()) and cap < int(counts.max()):
        cap += 1
    return cap


def capped_indices(targets: Tensor, cap: int, seed: int = 0) -> Tensor:
    """Positions of at most ``cap`` images of each class, drawn and put in an order by ``seed``, (N,), int64."""
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed), device='cpu')
    ranked = torch.argsort(targets[order], stable=True)
    label = targets[order][ranked]
    place = torch.arange(len(label), device='cpu') - torch.searchsorted(label, label)
    # in the order of the draw again, so that the first images are mixed
    return order[ranked[place < cap].sort().values]


def images_of_groups(
        loader: Iterable[tuple[Tensor, Tensor]],
        groups: Tensor,
        most: int,
) -> list[tuple[Tensor, Tensor]]:
    """The first images of each group that this process's share of the loader has, with labels, on the CPU.

    Args:
        loader: Images with labels, each image once over all processes.
        groups: Group of each class, (C,).
        most: Images of a group, over all processes.
    """
    num_groups = int(groups.max()) + 1
    limit = -(-most // world_size())
    found: list[list[tuple[Tensor, Tensor]]] = [[] for _ in range(num_groups)]
    missing = [limit] * num_groups
    shape, dtype = (0,), torch.float32
    for input, label in loader:
        group = groups[label.cpu()]
        shape, dtype = (0, *input.shape[1:]), input.dtype
        for k in range(num_groups):
            index = (group == k).nonzero().flatten()[:missing[k]].to(label.device)
            if len(index):
                found[k].append((input[index].cpu(), label[index].cpu()))
                missing[k] -= len(index)
        if not any(missing):
            break
    empty = (torch.zeros(shape, dtype=dtype), torch.zeros(0, dtype=torch.int64))
    return [
        (torch.cat([x for x, _ in pairs]), torch.cat([y for _, y in pairs])) if pairs else empty for pairs in found]

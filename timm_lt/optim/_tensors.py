"""Arithmetic on lists of parameters and gradients, plain or sharded (FSDP2)."""

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed as dist
import torch.nn as nn
from torch import Tensor

try:
    from torch.distributed.tensor import DTensor
except ImportError:  # a torch built without distributed
    DTensor = ()  # type: ignore[assignment,misc]

Gradients = list[Tensor | None]  # aligned with a list of parameters

_BUCKET_BYTES = 25 * 2**20


def set_gradients(params: Sequence[Tensor], gradients: Gradients) -> None:
    """Put one gradient into ``.grad`` of each parameter."""
    for p, g in zip(params, gradients):
        p.grad = g


def take_gradients(params: Sequence[Tensor]) -> Gradients:
    """The gradients of the parameters; ``.grad`` is None afterwards."""
    gradients = [p.grad for p in params]
    for p in params:
        p.grad = None
    return gradients


def add_up(tensors: Iterable[Tensor]) -> Tensor:
    """The sum of tensors of one shape, at least one, in their order."""
    first, *others = tensors
    for t in others:
        first = first + t
    return first


def is_sharded(module: nn.Module) -> bool:
    """Whether FSDP2 sharded a parameter of the module."""
    return any(isinstance(p, DTensor) for p in module.parameters())


def local(tensor: Any) -> Tensor:
    """The part of a tensor that this process holds; it shares memory with the tensor."""
    detached: Any = tensor.detach()
    return detached.to_local() if isinstance(tensor, DTensor) else detached


def global_norm(tensors: Sequence[Tensor]) -> Tensor:
    """Euclidean norm of all tensors together, over all shards; 0 for none."""
    if not tensors:
        return torch.zeros(())
    norms = []
    for sharded in (False, True):
        group = [t for t in tensors if isinstance(t, DTensor) is sharded]
        if group:
            norm: Any = torch.nn.utils.get_total_norm(group)
            norms.append(norm.full_tensor() if sharded else norm)
    return norms[0] if len(norms) == 1 else torch.linalg.vector_norm(torch.stack(norms))


def global_dot(a: Sequence[Tensor], b: Sequence[Tensor]) -> Tensor:
    """Scalar product of two lists of tensors, over all shards; 0 for none."""
    products = [(x.detach() * y.detach()).sum() if isinstance(x, DTensor) else
                torch.dot(x.detach().reshape(-1), y.detach().reshape(-1)) for x, y in zip(a, b)]
    products = [p.full_tensor() if isinstance(p, DTensor) else p for p in products]
    return torch.stack([p.to(products[0].device) for p in products]).sum() if products else torch.zeros(())


def scale_(tensors: Sequence[Tensor], scale: Tensor | float) -> None:
    """Multiply each tensor by one number, in place."""
    tensors = [local(t) for t in tensors]
    if isinstance(scale, Tensor) and len({t.device for t in tensors}) > 1:
        for t in tensors:
            t.mul_(scale.to(t.device))
    elif tensors:
        torch._foreach_mul_(tensors, scale)


def subtract_(tensors: Sequence[Tensor], others: Sequence[Tensor], factor: Tensor) -> None:
    """``tensors -= factor * others``, in place; ``factor`` is one number."""
    tensors, others = [local(t) for t in tensors], [local(t) for t in others]
    if factor.device.type == 'cpu' and all(t.device.type == 'cpu' for t in tensors):
        torch._foreach_add_(tensors, others, alpha=-float(factor))  # no product in memory
    else:
        torch._foreach_sub_(tensors, torch._foreach_mul(others, factor))


class SavedWeights:
    """Perturbs parameters and restores their values bit for bit.

    Args:
        params: The parameters that may be perturbed; this holds one copy of them.
    """

    def __init__(self, params: Sequence[Tensor]) -> None:
        self.params = [local(p) for p in params]
        self.copies = [p.clone() for p in self.params]
        self.index = {id(p): i for i, p in enumerate(params)}

    @contextmanager
    def perturbed(self, params: Sequence[Tensor], eps: list[Tensor]) -> Iterator[None]:
        """``params + eps`` inside the block; ``eps`` is emptied, so that its memory is free during the pass."""
        where = [self.index[id(p)] for p in params]
        try:
            if where:
                torch._foreach_add_([self.params[i] for i in where], [local(e) for e in eps])
            eps.clear()
            yield
        finally:
            # by copying: adding and subtracting would change the last bits, and replicas would drift apart
            if where:
                torch._foreach_copy_([self.params[i] for i in where], [self.copies[i] for i in where])


class SavedBuffers:
    """A copy of the buffers of a module, with which :meth:`restore` overwrites them.

    Args:
        module: The module; None keeps nothing.
    """

    def __init__(self, module: nn.Module | None) -> None:
        self.saved = [
            (owner, name, buffer, buffer.clone())
            for owner in ([] if module is None else module.modules())
            for name, buffer in owner._buffers.items() if buffer is not None
        ]

    def restore(self) -> None:
        with torch.no_grad():
            for owner, name, buffer, copy in self.saved:
                # a module may write into its buffer or replace it by a new tensor
                owner._buffers[name] = buffer
                buffer.copy_(copy)


def average_over_processes(gradients: list[Gradients], like: Sequence[Tensor], group: Any) -> None:
    """Average lists of gradients over processes, in place, in buckets.

    A gradient that is None on every process stays None; one that is None on some counts as zero there.

    Args:
        gradients: Lists aligned with ``like``.
        like: The parameters, for shapes and types; the same on every process.
        group: Process group.
    """
    world = dist.get_world_size(group)
    present = torch.tensor(
        [[g is not None for g in row] for row in gradients], dtype=torch.float32, device=like[0].device)
    dist.all_reduce(present, group=group)
    bucket: list[Tensor] = []
    for row, wanted in zip(gradients, (present > 0).tolist()):
        for i, p in enumerate(like):
            if not wanted[i]:
                continue
            g = row[i]
            if g is None:
                g = row[i] = torch.zeros_like(p)
            if bucket and (bucket[0].dtype, bucket[0].device) != (g.dtype, g.device):
                _average_bucket(bucket, world, group)
            bucket.append(g)
            if sum(t.numel() * t.element_size() for t in bucket) >= _BUCKET_BYTES:
                _average_bucket(bucket, world, group)
    _average_bucket(bucket, world, group)


def _average_bucket(bucket: list[Tensor], world: int, group: Any) -> None:
    if not bucket:
        return
    flat = torch.cat([t.reshape(-1) for t in bucket])
    dist.all_reduce(flat, group=group)
    flat /= world
    torch._foreach_copy_(bucket, [f.view_as(t) for f, t in zip(flat.split([t.numel() for t in bucket]), bucket)])
    bucket.clear()


@torch.no_grad()
def broadcast_tensors(tensors: Sequence[Tensor], group: Any) -> None:
    """Overwrite tensors by those of the first process of a group, in one message per dtype."""
    by_type: dict[torch.dtype, list[Tensor]] = {}
    for t in tensors:
        by_type.setdefault(t.dtype, []).append(t)
    first = dist.get_global_rank(group, 0)
    for alike in by_type.values():
        flat = torch.cat([t.reshape(-1) for t in alike])
        dist.broadcast(flat, first, group=group)
        for t, values in zip(alike, flat.split([t.numel() for t in alike])):
            t.copy_(values.view_as(t))

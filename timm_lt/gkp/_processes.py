"""The processes of a run, without a process group the only one."""

from typing import Any

import torch.distributed as dist


def rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def gather(kept: list[Any]) -> list[Any]:
    """The entries of all processes, in the order of the ranks."""
    if world_size() == 1:
        return kept
    lists: list[Any] = [None] * world_size()
    dist.all_gather_object(lists, kept)
    return [entry for kept in lists for entry in kept]

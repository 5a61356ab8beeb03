"""Samplers by name."""

from typing import Any

from torch.utils.data import Sampler

from .._registry import SAMPLERS, call_factory


def list_samplers(filter: str = '') -> list[str]:
    """Names of the samplers, sorted; ``filter`` is a wildcard such as ``'*balanced'``."""
    return SAMPLERS.names(filter)


def create_sampler(
        name: str,
        targets: Any,
        *,
        seed: int = 0,
        num_replicas: int | None = None,
        rank: int | None = None,
        **kwargs: Any,
) -> Sampler[int]:
    """Create a sampler by name.

    Args:
        name: One of :func:`list_samplers`.
        targets: Labels of the training images, (N,); :func:`timm_lt.data.get_targets` reads those of a dataset.
        seed: All randomness comes from an own generator seeded by (seed, epoch).
        num_replicas: Number of processes among which this sampler itself divides the epoch. None: it does not divide;
            each process sees the whole order and the loader (Accelerate) shards it. Never shard twice. Such a loader
            also sets the epoch: call ``loader.set_epoch(epoch)``, and save with ``state_dict(position=...)``.
        rank: This process, in [0, num_replicas); given exactly when ``num_replicas`` is.
        **kwargs: Options of the sampler.

    Raises:
        ValueError: If the name is unknown, labels are empty, or an option is out of range.
        TypeError: If the sampler has no such option, or needs one that is not given.
    """
    info = SAMPLERS.info(name)
    return call_factory(info, 'sampler', targets, seed=seed, num_replicas=num_replicas, rank=rank, **kwargs)

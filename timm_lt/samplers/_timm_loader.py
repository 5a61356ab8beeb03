"""A loader of timm with another sampler: ``timm.data.create_loader(..., sampler=NAME or object)``."""

from collections.abc import Callable
from typing import Any, cast

import torch.distributed
from timm.data.distributed_sampler import RepeatAugSampler
from timm.data.loader import PrefetchLoader
from torch.utils.data import BatchSampler, DataLoader, IterableDataset, Sampler

from .._dataset_labels import get_targets
from .._registry import SAMPLERS, call_factory
from .._timm_hooks import extends_timm

# what a DataLoader was made with besides batch size, sampler and drop_last
_LOADER_OPTIONS = (
    'num_workers', 'collate_fn', 'pin_memory', 'timeout', 'worker_init_fn', 'multiprocessing_context', 'generator',
    'prefetch_factor', 'persistent_workers', 'in_order',
)


def with_sampler(
        loader: DataLoader | PrefetchLoader,
        sampler: str | Sampler[int],
        distributed: bool = False,
) -> DataLoader | PrefetchLoader:
    """Rebuild a loader around another sampler; batch size, workers, collation and ``drop_last`` stay.

    ``loader.sampler.set_epoch(epoch)`` before each epoch gives each its own order.

    Args:
        loader: What ``timm.data.create_loader`` returned, over a map-style dataset.
        sampler: A name of :func:`timm_lt.list_samplers`, built from the labels of the dataset with seed 0. Or a
            sampler, used unchanged; create it for another seed or options.
        distributed: The sampler divides the epoch among the processes of torch's default group, as timm's own sampler
            does. False where something else divides the loader (Accelerate), never both.

    Returns:
        A new ``DataLoader`` of the same class; a ``PrefetchLoader`` is returned itself, with the new one inside.

    Raises:
        ValueError: If the loader streams, schedules its batches or repeats augmentations. Also if a sampler that
            divides is needed and there is none.
        TypeError: If ``sampler`` is neither a name nor a sampler of single images.
    """
    if isinstance(loader, PrefetchLoader):
        loader.loader = cast(DataLoader, with_sampler(loader.loader, sampler, distributed))
        return loader
    if isinstance(loader.dataset, IterableDataset):
        raise ValueError(
            f'sampler={_name(sampler)} needs a map-style dataset, got {type(loader.dataset).__name__}, which streams')
    if loader.batch_size is None:
        raise ValueError(
            f'sampler={_name(sampler)} cannot go into a loader that has its own batch sampler '
            f'({type(loader.batch_sampler).__name__}); leave out the scheduled input and batch sizes')
    if isinstance(loader.sampler, RepeatAugSampler):
        raise ValueError(f'sampler={_name(sampler)} would replace the one that repeats augmentations; '
                         f'use num_aug_repeats=0')
    if isinstance(sampler, str):
        info = SAMPLERS.info(sampler)
        needs = [name for name in info.needs if name != 'targets']
        if needs:
            raise TypeError(
                f'sampler {sampler!r} needs {", ".join(needs)}, which create_loader does not know: make it yourself, '
                f'sampler=timm_lt.create_sampler({sampler!r}, targets, {"=..., ".join(needs)}=...)')
        sampler = call_factory(info, 'sampler', get_targets(loader.dataset), **_replicas(distributed))
    elif isinstance(sampler, BatchSampler) or not hasattr(sampler, '__iter__'):
        raise TypeError(
            f'sampler must be a name of timm_lt.list_samplers() or an iterable of image indices, got {sampler!r}')
    elif distributed and getattr(sampler, 'num_replicas', 0) is None:  # one of ours, not divided
        replicas = _replicas(distributed)
        if replicas['num_replicas'] > 1:
            raise ValueError(
                'with distributed=True every process would go through the whole epoch; make the sampler with '
                'num_replicas={num_replicas}, rank={rank}'.format(**replicas))
    options = {name: getattr(loader, name) for name in _LOADER_OPTIONS if hasattr(loader, name)}
    return type(loader)(
        loader.dataset, batch_size=loader.batch_size, sampler=sampler, drop_last=loader.drop_last, **options)


@extends_timm('create_loader')
def create_loader_for_timm(original: Callable, dataset: Any, *args: Any, sampler: Any = None, **kwargs: Any) -> Any:
    """:func:`timm.data.create_loader` with ``sampler``: a name of :func:`timm_lt.list_samplers`, or a sampler."""
    loader = original(dataset, *args, **kwargs)
    return loader if sampler is None else with_sampler(loader, sampler, kwargs.get('distributed', False))


def _replicas(distributed: bool) -> dict[str, int]:
    if not distributed:
        return {}
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(
            'distributed=True needs an initialised process group (timm.utils.init_distributed_device); '
            'leave it out where Accelerate divides the loader')
    return {'num_replicas': torch.distributed.get_world_size(), 'rank': torch.distributed.get_rank()}


def _name(sampler: Any) -> str:
    return repr(sampler) if isinstance(sampler, str) else type(sampler).__name__

"""timm's own create_loader with a sampler of this package, on a folder of images."""

import numpy as np
import pytest
import timm.data
import torch
from PIL import Image
from timm.data.loader import MultiEpochsDataLoader, PrefetchLoader
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, IterableDataset, SequentialSampler

import timm_lt
from timm_lt._timm_hooks import _originals
from timm_lt.data import with_sampler

COUNTS = {'ant': 12, 'bee': 5, 'cat': 1}


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp('images')
    for level, (name, count) in enumerate(COUNTS.items()):
        (root / name).mkdir()
        for i in range(count):
            pixels = np.full((8, 8, 3), 40 * level + i, np.uint8)
            Image.fromarray(pixels).save(root / name / f'{i:02d}.png')
    return root


def make(folder, **kwargs):
    dataset = timm.data.create_dataset('', root=str(folder))
    options = dict(input_size=(3, 8, 8), batch_size=4, is_training=True, num_workers=0, use_prefetcher=False)
    return timm.data.create_loader(dataset, **{**options, **kwargs})


def batches(loader):
    return [target.tolist() for _, target in loader]


@pytest.fixture
def one_process_group(tmp_path):
    torch.distributed.init_process_group('gloo', init_method=f'file://{tmp_path}/store', rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def test_without_sampler_the_loader_is_the_one_of_timm(folder):
    original = _originals[timm.data, 'create_loader']
    plain = original(
        timm.data.create_dataset('', root=str(folder)), input_size=(3, 8, 8), batch_size=4, is_training=True,
        num_workers=0, use_prefetcher=False)
    torch.manual_seed(3)
    expected = batches(plain)
    for given in ({}, {'sampler': None}):
        loader = make(folder, **given)
        assert type(loader) is type(plain) and type(loader.sampler) is type(plain.sampler)
        torch.manual_seed(3)
        assert batches(loader) == expected


@pytest.mark.parametrize('name', [n for n in timm_lt.list_samplers() if n != 'progressive'])
def test_a_name_builds_the_sampler_from_the_labels_of_the_folder(folder, name):
    loader = make(folder, sampler=name)
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor(list(COUNTS.values())))
    order = timm_lt.create_sampler(name, targets).order(0)
    expected = targets[order][:len(order) // 4 * 4]
    assert sum(batches(loader), []) == expected.tolist()
    loader.sampler.set_epoch(1)
    assert loader.sampler.epoch == 1


def test_class_balanced_loader_feeds_every_class_equally_often(folder):
    labels = torch.tensor(sum(batches(make(folder, sampler='class_balanced', batch_size=6)), []))
    assert torch.bincount(labels).tolist() == [6, 6, 6]


def test_a_sampler_object_is_used_as_it_is(folder):
    sampler = timm_lt.create_sampler('progressive', [0] * 12 + [1] * 5 + [2], num_epochs=3, seed=9)
    assert make(folder, sampler=sampler).sampler is sampler
    plain = make(folder, sampler=SequentialSampler(range(18)))
    assert batches(plain) == [[0] * 4, [0] * 4, [0] * 4, [1] * 4]


def test_batch_size_workers_collation_and_drop_last_stay(folder):
    def collate(samples):
        return torch.zeros(1), torch.tensor([t for _, t in samples])

    plain = make(folder, num_workers=2, collate_fn=collate, pin_memory=False, worker_seeding='part')
    loader = with_sampler(plain, 'reverse')
    assert loader is not plain
    for name in ('batch_size', 'num_workers', 'collate_fn', 'pin_memory', 'worker_init_fn', 'persistent_workers',
                 'prefetch_factor', 'timeout', 'drop_last', 'dataset', 'multiprocessing_context', 'generator'):
        assert getattr(loader, name) == getattr(plain, name), name
    assert make(folder, is_training=False, sampler='reverse').drop_last is False
    assert len(make(folder, is_training=False, sampler='reverse')) == 5
    assert len(make(folder, sampler='reverse')) == 4


def test_prefetch_loader_keeps_its_normalisation(folder):
    given = dict(use_prefetcher=True, device=torch.device('cpu'), mean=(0.1, 0.2, 0.3), re_prob=0.4)
    loader = make(folder, sampler='class_balanced', **given)
    assert isinstance(loader, PrefetchLoader) and loader.random_erasing is not None
    torch.testing.assert_close(loader.mean.flatten(), torch.tensor([25.5, 51.0, 76.5]))
    assert type(loader.sampler).__name__ == 'ClassBalancedSampler'
    images, labels = next(iter(loader))
    assert images.dtype == torch.float32 and images.shape == (4, 3, 8, 8)
    assert set(labels[:3].tolist()) == {0, 1, 2}


def test_multi_epochs_loader_advances_the_epoch_of_the_sampler(folder):
    loader = make(folder, use_multi_epochs_loader=True, sampler='class_balanced')
    assert isinstance(loader, MultiEpochsDataLoader)
    targets = torch.tensor([0] * 12 + [1] * 5 + [2])
    sampler = timm_lt.create_sampler('class_balanced', targets)
    for epoch in range(2):
        assert sum(batches(loader), []) == targets[sampler.order(epoch)][:16].tolist()


def test_distributed_name_divides_among_the_processes(folder, one_process_group, monkeypatch):
    loader = make(folder, distributed=True, sampler='class_balanced')
    assert (loader.sampler.num_replicas, loader.sampler.rank) == (1, 0)
    assert isinstance(make(folder, distributed=True).sampler, DistributedSampler)
    monkeypatch.setattr(torch.distributed, 'get_world_size', lambda *a: 2)
    monkeypatch.setattr(torch.distributed, 'get_rank', lambda *a: 1)
    loader = make(folder, distributed=True, sampler='class_balanced', batch_size=3)
    assert (loader.sampler.num_replicas, loader.sampler.rank) == (2, 1) and len(loader) == 3
    whole = timm_lt.create_sampler('class_balanced', [0] * 12 + [1] * 5 + [2])
    with pytest.raises(ValueError, match='num_replicas=2, rank=1'):
        make(folder, distributed=True, sampler=whole)


def test_distributed_without_a_process_group_is_a_clear_error(folder):
    with pytest.raises(ValueError, match='initialised process group'):
        with_sampler(make(folder), 'reverse', distributed=True)


def test_what_cannot_take_a_sampler_is_refused(folder, one_process_group):
    class Stream(IterableDataset):
        def __iter__(self):
            return iter([])

    with pytest.raises(ValueError, match='streams'):
        with_sampler(DataLoader(Stream()), 'reverse')
    with pytest.raises(ValueError, match='ScheduledBatchSampler'):
        make(folder, sampler='reverse', input_size_choices=[8, 16])
    with pytest.raises(ValueError, match='num_aug_repeats=0'):
        make(folder, distributed=True, num_aug_repeats=2, sampler='reverse')
    with pytest.raises(ValueError, match="Did you mean 'reverse'"):
        make(folder, sampler='revers')
    with pytest.raises(TypeError, match=r"create_sampler\('progressive', targets, num_epochs=...\)"):
        make(folder, sampler='progressive')
    for wrong in (3, BatchSampler(range(18), 4, False)):
        with pytest.raises(TypeError, match='image indices'):
            make(folder, sampler=wrong)

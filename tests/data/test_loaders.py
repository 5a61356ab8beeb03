import dataclasses
import random

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, RandomSampler

import timm_lt
from timm_lt.data import (
    Augmentation,
    EpochBatches,
    EvalBatches,
    ImageReadError,
    ImagesDoNotFit,
    ImageSubset,
    InMemoryImages,
    MemoryLoader,
    SeededImages,
    WorkerLoader,
    create_dataset,
    create_eval_loader,
    create_train_loader,
    eval_transform,
    keep_in_memory,
    three_views,
)

MEAN, STD = (0.5,) * 3, (0.25,) * 3
AUGMENTATION = Augmentation((3, 8, 8), MEAN, STD, padding=2)


@pytest.fixture
def memory():
    images = torch.randint(0, 256, (23, 3, 8, 8), dtype=torch.uint8)
    images[:, 0, 0, 0] = torch.arange(23)
    return InMemoryImages(images, [i % 3 for i in range(23)], ['a', 'b', 'c'])


def sampler(memory, **kwargs):
    return timm_lt.create_sampler('instance_balanced', memory.targets, **kwargs)


def same(a, b):
    return len(a) == len(b) and all(torch.equal(u, v) for x, y in zip(a, b) for u, v in zip(x, y))


# batches


def test_steps_follow_the_order_of_the_sampler(memory):
    batches = EpochBatches(sampler(memory), 5)
    batches.set_epoch(3)
    steps = list(batches)
    assert len(batches) == len(steps) == 4  # the last 3 of 23 do not fill a step
    assert torch.equal(torch.cat([b.indices for b in steps]), sampler(memory).order(3)[:20])
    assert [b.step for b in steps] == [0, 1, 2, 3]


@pytest.mark.parametrize('drop_last', [True, False])
def test_two_processes_see_the_steps_of_one_with_the_double_batch(memory, drop_last):
    one = list(EpochBatches(sampler(memory), 6, drop_last=drop_last))
    two = [list(EpochBatches(sampler(memory), 3, world=2, rank=r, drop_last=drop_last)) for r in range(2)]
    assert len(one) == len(two[0]) == len(two[1]) == (3 if drop_last else 4)
    for whole, a, b in zip(one, *two):
        assert len(a.indices) == len(b.indices) and a.size == b.size == 2 * len(a.indices)
        merged = torch.stack([a.indices, b.indices], 1).flatten()
        assert torch.equal(merged, whole.indices[:len(merged)])
        assert whole.size - a.size <= (0 if drop_last else 1)


def test_epoch_resumes_at_any_step(memory):
    batches = EpochBatches(sampler(memory), 5)
    batches.set_epoch(1)
    whole = [b.indices.tolist() for b in batches]
    for start in range(5):
        batches.set_epoch(1, start)
        assert [b.indices.tolist() for b in batches] == whole[start:] and len(batches) == 4


def test_epoch_shorter_than_a_batch_is_one_short_step(memory):
    assert [len(b.indices) for b in EpochBatches(sampler(memory), 64)] == [23]
    assert [b.size for b in EpochBatches(sampler(memory), 64, world=2, rank=1)] == [22]
    with pytest.raises(ValueError, match='use fewer processes'):
        EpochBatches(sampler(memory), 4, world=24)


def test_sampler_that_divides_the_epoch_is_refused(memory):
    with pytest.raises(ValueError, match='divides the epoch'):
        EpochBatches(sampler(memory, num_replicas=2, rank=0), 4, world=2)


@pytest.mark.parametrize('world', [1, 2, 3, 5])
def test_evaluation_sees_every_image_exactly_once_over_all_processes(world):
    parts = [torch.cat([b.indices for b in EvalBatches(23, 4, world=world, rank=r)]).tolist() for r in range(world)]
    assert sorted(sum(parts, [])) == list(range(23))
    assert parts[0][:2] == [0, world]


# memory


def test_images_in_memory_are_those_of_the_dataset():
    dataset = create_dataset('timm_lt/digits', split='test')
    dataset.transform = lambda image: None
    memory = InMemoryImages.from_dataset(ImageSubset(dataset, [5, 300]))
    assert memory.image_size == (3, 32, 32) and memory.targets.tolist() == dataset.targets[[5, 300]].tolist()
    dataset.transform = None
    for position, index in enumerate((5, 300)):
        assert np.array_equal(np.asarray(memory[position][0]), np.asarray(dataset[index][0]))
    assert memory.class_names == dataset.class_names


def write_images(folder, sizes):
    (folder / 'cat').mkdir(parents=True)
    for i, size in enumerate(sizes):
        Image.new('RGB', size, (i,) * 3).save(folder / 'cat' / f'{i}.png')
    return create_dataset('', folder)


def test_images_of_different_size_or_too_many_are_left_on_disk(tmp_path):
    dataset = write_images(tmp_path / 'a', [(8, 8), (8, 9)])
    assert keep_in_memory(dataset) is None and keep_in_memory(dataset, 'off') is None
    with pytest.raises(ImagesDoNotFit, match=r'1\.png has 8 x 9 pixels, the images before it 8 x 8'):
        keep_in_memory(dataset, 'on')
    assert keep_in_memory(dataset, 'on', eval_transform((3, 4, 4))).image_size == (3, 4, 4)
    with pytest.raises(ImagesDoNotFit, match='more than the limit'):
        keep_in_memory(write_images(tmp_path / 'b', [(8, 8)] * 3), 'on', max_bytes=3 * 8 * 8 * 3 - 1)


def test_unreadable_images_stop_or_are_left_out_with_their_number(tmp_path, caplog):
    dataset = write_images(tmp_path, [(8, 8)] * 4)
    (tmp_path / 'cat' / '2.png').write_bytes(b'')
    with pytest.raises(ImageReadError, match=r'1 of 4 images cannot be read: .*cat/2\.png'):
        keep_in_memory(dataset)
    memory = keep_in_memory(dataset, bad_images='skip')
    assert memory.images[:, 0, 0, 0].tolist() == [0, 1, 3] and len(memory.targets) == 3
    assert '1 of 4' in caplog.text


@pytest.mark.parametrize('images,targets,match', [
    (torch.zeros(2, 3, 4, 4), [0, 1], 'uint8'),
    (torch.zeros(2, 3, 4, 4, dtype=torch.uint8), [0], 'as many targets'),
])
def test_images_and_targets_must_fit(images, targets, match):
    with pytest.raises(ValueError, match=match):
        InMemoryImages(images, targets)


# loaders


def test_faster_loader_is_taken_where_the_augmentation_allows(memory):
    def kind(dataset, **changes):
        return type(create_train_loader(dataset, sampler(memory), dataclasses.replace(AUGMENTATION, **changes), 4))

    assert kind(memory) is kind(memory, auto_augment='cifar10', cutout=4, reprob=0.5) is MemoryLoader
    assert kind(memory, auto_augment='3a') is kind(memory, input_size=(3, 16, 16)) is WorkerLoader
    assert kind(ImageSubset(memory)) is WorkerLoader


def test_memory_loader_pairs_images_and_targets(memory):
    plain = dataclasses.replace(AUGMENTATION, crop_mode='none', hflip=0., mean=(0.,) * 3, std=(1 / 255,) * 3)
    for loader in (create_train_loader(memory, sampler(memory), plain, 4),
                   create_train_loader(ImageSubset(memory), sampler(memory), plain, 4)):
        for input, target in loader:
            assert input.dtype == torch.float32 and target.dtype == torch.int64
            assert torch.equal(input[:, 0, 0, 0].round().long() % 3, target)


@pytest.mark.parametrize('changes,workers', [
    (dict(cutout=3), None), (dict(auto_augment='rand-m9-mstd0.5', cutout=3), None),
    (dict(auto_augment='rand-m9-mstd0.5', cutout=3), 0), (dict(auto_augment='cifar10'), 2),
])
def test_loader_resumes_in_mid_epoch_and_repeats_epochs(memory, changes, workers):
    augmentation = dataclasses.replace(AUGMENTATION, **changes)
    dataset = memory if workers is None else ImageSubset(memory)  # whole batches or single images

    def make():
        return create_train_loader(dataset, sampler(memory), augmentation, 4, workers=workers or 0)

    loader = make()
    loader.set_epoch(0)
    first = list(loader)
    loader.set_epoch(1)
    second = list(loader)
    assert len(first) == len(loader) == 5 and not same(first, second)
    fresh = make()
    fresh.set_epoch(1, 3)
    assert same(list(fresh), second[3:])
    loader.set_epoch(0)
    assert same(list(loader), first)


@pytest.mark.parametrize('world', [1, 2])
def test_images_that_an_epoch_has_drawn_before_are_marked_and_erased(memory, world):
    order = [0, 1, 0, 2, 2, 3, 0, 4]
    seen = [i in order[:place] for place, i in enumerate(order)]
    batches = [list(EpochBatches(order, 4 // world, world=world, rank=r)) for r in range(world)]
    marked = [torch.stack([b[step].repeated for b in batches], 1).flatten().tolist() for step in range(2)]
    assert marked[0] + marked[1] == seen
    augmentation = dataclasses.replace(
        AUGMENTATION, crop_mode='none', hflip=0., repeat_reprob=1., remode='pixel')
    for dataset in (memory, ImageSubset(memory)):
        plain, erased = (
            torch.cat([x for x, _ in create_train_loader(dataset, order, a, 4)])
            for a in (dataclasses.replace(augmentation, repeat_reprob=None), augmentation))
        assert (plain != erased).flatten(1).any(1).tolist() == seen


def test_worker_count_changes_nothing(memory):
    augmentation = dataclasses.replace(AUGMENTATION, auto_augment='cifar10', color_jitter=0.4, cutout=3)
    files = ImageSubset(memory)
    runs = [list(create_train_loader(files, sampler(memory), augmentation, 4, workers=w)) for w in (0, 1, 2)]
    assert same(runs[0], runs[1]) and same(runs[0], runs[2])


@pytest.mark.parametrize('whole', [True, False])
@pytest.mark.parametrize('changes', [dict(cutout=3, reprob=0.5), dict(auto_augment='original', cutout=3)])
def test_two_processes_load_what_one_loads_with_the_double_batch(memory, changes, whole):
    augmentation = dataclasses.replace(AUGMENTATION, **changes)
    dataset = memory if whole else ImageSubset(memory)
    one = list(create_train_loader(dataset, sampler(memory), augmentation, 6))
    parts = [list(create_train_loader(dataset, sampler(memory), augmentation, 3, world=2, rank=r)) for r in range(2)]
    for step, (input, target) in enumerate(one):
        for rank in range(2):
            assert torch.equal(parts[rank][step][0], input[rank::2])
            assert torch.equal(parts[rank][step][1], target[rank::2])


def test_loaders_leave_the_global_generators_alone(memory):
    def states():
        return random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()

    before = states()
    for changes in (dict(), dict(auto_augment='rand-m9-mstd0.5')):
        for workers in (0, 1):
            dataset = ImageSubset(memory) if workers else memory
            loader = create_train_loader(
                dataset, sampler(memory), dataclasses.replace(AUGMENTATION, **changes), 8, workers=workers)
            list(loader)
    assert states() == before


@pytest.mark.parametrize('changes', [dict(cutout=2), dict(color_jitter=0.4)])
def test_image_drawn_again_in_an_epoch_is_augmented_anew(changes):
    rare = InMemoryImages(torch.randint(0, 256, (9, 3, 8, 8), dtype=torch.uint8), [0] * 8 + [1])
    order = timm_lt.create_sampler('class_balanced', rare.targets, num_samples=12)
    loader = create_train_loader(rare, order, dataclasses.replace(AUGMENTATION, **changes), 12)
    input, target = next(iter(loader))
    assert len(input[target == 1].unique(dim=0)) == int((target == 1).sum()) == 6


def test_abandoned_epoch_does_not_shift_the_next(memory):
    augmentation = dataclasses.replace(AUGMENTATION, auto_augment='cifar10', cutout=3)
    files = ImageSubset(memory)
    expected = list(create_train_loader(files, sampler(memory), augmentation, 4))
    for workers in (0, 1):
        loader = create_train_loader(files, sampler(memory), augmentation, 4, workers=workers)
        next(iter(loader))
        assert same(list(loader), expected)


def test_torch_sampler_works_too(memory):
    loader = create_train_loader(memory, RandomSampler(memory), AUGMENTATION, 4)
    assert sum(len(target) for _, target in loader) == 20


def test_three_views_come_as_one_tensor_per_image(memory):
    for dataset, kind in ((memory, MemoryLoader), (ImageSubset(memory), WorkerLoader)):
        loader = create_train_loader(dataset, sampler(memory), AUGMENTATION, 4, transform=three_views(AUGMENTATION))
        input, target = next(iter(loader))
        assert type(loader) is kind and input.shape == (4, 3, 3, 8, 8) and target.shape == (4,)


def test_evaluation_is_the_same_from_memory_and_from_files(tmp_path):
    dataset = write_images(tmp_path, [(10, 12), (12, 10), (9, 9)])
    transform = eval_transform((3, 8, 8), 'bicubic', 0.9)
    files = create_eval_loader(dataset, MEAN, STD, 2, transform=transform)
    memory = create_eval_loader(keep_in_memory(dataset, 'on', transform), MEAN, STD, 2)
    assert len(files) == len(memory) == 2 and same(list(files), list(memory))
    with pytest.raises(ValueError, match='eval_transform'):
        create_eval_loader(dataset, MEAN, STD, 2)


def test_loader_does_not_change_the_transform_of_the_dataset(tmp_path):
    dataset = write_images(tmp_path, [(8, 8)] * 3)
    create_eval_loader(dataset, MEAN, STD, 2, transform=eval_transform((3, 8, 8)))
    create_train_loader(dataset, sampler(dataset), AUGMENTATION, 2)
    assert dataset.transform is None


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_image_stops_the_loader_with_its_name(tmp_path, workers):
    dataset = write_images(tmp_path, [(8, 8)] * 3)
    (tmp_path / 'cat' / '1.png').write_bytes(b'')
    loader = create_eval_loader(dataset, MEAN, STD, 4, transform=eval_transform((3, 8, 8)), workers=workers)
    with pytest.raises(ImageReadError, match=r'^cannot read .*cat/1\.png.*--bad-images skip\)$'):
        list(loader)


def test_seeded_images_depend_on_their_key_only(memory):
    memory.transform = lambda image: (random.random(), float(np.random.rand()), float(torch.rand(())))
    dataset = SeededImages(memory, seed=1)
    draws = [dataset[key][0] for key in ((0, 0, 0), (0, 0, 1), (0, 1, 0), (5, 0, 0))]
    assert dataset[0, 0, 0][0] == draws[0] == draws[3] and len(set(draws)) == 3
    assert SeededImages(memory, seed=2)[0, 0, 0][0] != draws[0]


def test_transform_must_give_uint8(memory):
    memory.transform = lambda image: torch.zeros(3, 8, 8)
    loader = WorkerLoader(memory, EvalBatches(23, 4), AUGMENTATION.batch_augment())
    with pytest.raises(TypeError, match='uint8'):
        list(loader)


def test_images_in_memory_work_in_a_plain_loader(memory):
    memory.transform = eval_transform((3, 8, 8), crop_pct=1.0)
    images, targets = next(iter(DataLoader(memory, batch_size=23)))
    assert torch.equal(images, memory.images) and torch.equal(targets, memory.targets)

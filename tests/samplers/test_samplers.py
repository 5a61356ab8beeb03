"""Determinism, division among processes and resume of the samplers."""

import math
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import torch
from accelerate.data_loader import BatchSamplerShard
from sampler_cases import NAMES, make, make_targets, options
from torch.utils.data import BatchSampler, DataLoader, DistributedSampler, TensorDataset

import timm_lt
from timm_lt.samplers import LongTailSampler, check_not_divided


def test_all_samplers_are_listed():
    assert set(NAMES) == {
        'class_balanced', 'effective_number', 'instance_balanced', 'm_per_class', 'power', 'progressive',
        'repeat_factor', 'reverse', 'square_root'}


@pytest.mark.parametrize('name', NAMES)
def test_same_seed_and_epoch_repeat_and_others_differ(name):
    def order(seed, epoch):
        sampler = make(name, seed=seed, **options(name))
        sampler.set_epoch(epoch)
        first = list(sampler)
        assert first == list(sampler) == sampler.order(epoch).tolist()
        return tuple(first)

    assert order(1, 2) == order(1, 2)
    assert len({order(1, 2), order(1, 3), order(2, 2), order(2, 1), order(3, 0), order(0, 3)}) == 6


@pytest.mark.parametrize('name', NAMES)
def test_global_generators_are_left_untouched(name):
    before, before_numpy = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(make(name))
    assert torch.equal(before, torch.get_rng_state())
    assert np.array_equal(before_numpy, np.random.get_state()[1])
    torch.manual_seed(11)
    first = make(name).order(1)
    torch.manual_seed(12)
    assert torch.equal(first, make(name).order(1))


@pytest.mark.parametrize('name', NAMES)
def test_lists_arrays_and_tensors_give_the_same_order_of_plain_ints(name):
    targets = make_targets()
    orders = [list(make(name, t)) for t in (targets, targets.tolist(), tuple(targets.tolist()), targets.numpy(),
                                            targets.int(), targets.numpy().astype(np.int16))]
    assert all(o == orders[0] for o in orders)
    assert all(type(i) is int for i in orders[0])


@pytest.mark.parametrize('replicas', [1, 2, 4])
@pytest.mark.parametrize('name', NAMES)
def test_ranks_are_equally_long_and_together_the_whole_epoch(name, replicas):
    for num_samples in (64, 70, 3):
        whole = make(name, num_samples=num_samples)
        whole.set_epoch(1)
        order = list(whole)
        ranks = []
        for rank in range(replicas):
            sampler = make(name, num_samples=num_samples, num_replicas=replicas, rank=rank)
            sampler.set_epoch(1)
            ranks.append(list(sampler))
            assert len(sampler) == len(ranks[-1]) == math.ceil(num_samples / replicas)
        together = [i for step in zip(*ranks) for i in step]
        assert together[:num_samples] == order
        assert together[num_samples:] == order[:len(together) - num_samples]  # padding: the first draws once more


@pytest.mark.parametrize('replicas', [2, 4])
def test_drop_last_loses_the_remainder_instead_of_repeating(replicas):
    order = make('instance_balanced').order(0).tolist()
    ranks = [list(make('instance_balanced', num_replicas=replicas, rank=r, drop_last=True)) for r in range(replicas)]
    assert {len(r) for r in ranks} == {71 // replicas}
    assert [i for step in zip(*ranks) for i in step] == order[:71 // replicas * replicas]


@pytest.mark.parametrize('replicas', [None, 2])
@pytest.mark.parametrize('name', NAMES)
def test_resume_in_mid_epoch_continues_where_it_stopped(name, replicas):
    rank = None if replicas is None else 1
    sampler = make(name, num_replicas=replicas, rank=rank)
    sampler.set_epoch(3)
    whole = list(sampler)
    iterator = iter(sampler)
    head = [next(iterator) for _ in range(10)]
    state = sampler.state_dict()

    resumed = make(name, num_replicas=replicas, rank=rank)
    resumed.load_state_dict(state)
    assert resumed.epoch == 3 and resumed.state_dict() == state
    resumed.set_epoch(3)  # as a loop does at the start of each epoch
    assert head + list(resumed) == whole
    assert list(resumed) == whole  # only the first iteration after the resume is a part
    resumed.set_epoch(4)
    sampler.set_epoch(4)
    assert list(resumed) == list(sampler)


def test_state_is_the_same_on_all_ranks_and_fits_another_number_of_processes():
    whole = make('square_root').order(0).tolist()
    samplers = [make('square_root', num_replicas=4, rank=r) for r in range(4)]
    for sampler in samplers:
        iterator = iter(sampler)
        for _ in range(6):
            next(iterator)
    states = [s.state_dict() for s in samplers]
    assert all(s == states[0] for s in states)
    for replicas in (1, 2, 3):
        ranks = []
        for rank in range(replicas):
            resumed = make('square_root', num_replicas=replicas, rank=rank)
            resumed.load_state_dict(states[0])
            ranks.append(list(resumed))
        assert [i for step in zip(*ranks) for i in step][:71 - 24] == whole[24:]
    with pytest.raises(ValueError, match='5 processes do not divide'):
        make('square_root', num_replicas=5, rank=0).load_state_dict(states[0])


def test_position_can_be_given_because_workers_fetch_ahead():
    sampler = make('class_balanced')
    loader = DataLoader(range(71), batch_size=8, sampler=sampler, num_workers=1)
    batches = [batch.tolist() for batch, _ in zip(loader, range(2))]
    assert sampler.state_dict()['position'] > 16
    resumed = make('class_balanced')
    resumed.load_state_dict(sampler.state_dict(position=16))
    rest = [b.tolist() for b in DataLoader(range(71), batch_size=8, sampler=resumed)]
    assert sum(batches + rest, []) == list(make('class_balanced'))


def test_end_of_epoch_state_resumes_with_nothing_left():
    sampler = make('reverse')
    list(sampler)
    resumed = make('reverse')
    resumed.load_state_dict(sampler.state_dict())
    assert list(resumed) == []
    resumed.set_epoch(1)
    assert len(list(resumed)) == 71


def test_setting_another_epoch_than_the_loaded_one_is_not_silent(recwarn):
    sampler = make('reverse')
    sampler.set_epoch(3)
    state, end = sampler.state_dict(position=16), sampler.state_dict(position=71)
    for given, epoch, warns in ((state, 0, True), (state, 4, True), (state, 3, False), (end, 4, False), (end, 0, True)):
        resumed = make('reverse')
        resumed.load_state_dict(given)
        resumed.set_epoch(epoch)
        assert bool(recwarn) == warns, (given, epoch)
        if warns:
            assert 'loader.set_epoch(3)' in str(recwarn.pop(UserWarning).message)
    resumed.load_state_dict(state)
    list(resumed)
    resumed.set_epoch(0)  # the loaded epoch was run
    assert not recwarn


def test_state_of_another_sampler_law_or_order_of_labels_is_refused():
    targets = make_targets()
    for saved, loading, message in (
            (make('class_balanced'), make('reverse'), 'sampler=ClassBalancedSampler'),
            (make('progressive', num_epochs=10), make('progressive', num_epochs=20), 'num_epochs=10'),
            (make('effective_number'), make('effective_number', beta=0.9), 'beta=0.9999'),
            (make('repeat_factor', num_samples=80), make('repeat_factor', threshold=0.2, num_samples=80), 'threshold'),
            (make('reverse', targets), make('reverse', targets.flip(0)), 'same labels in the same order')):
        with pytest.raises(ValueError, match=message):
            loading.load_state_dict(saved.state_dict())
    for bad in ({}, {'position': 0, 'epoch': 1}):
        with pytest.raises(ValueError, match='sampler state lacks'):
            make('reverse').load_state_dict(bad)
    make('reverse', targets.tolist()).load_state_dict(make('reverse', targets.int()).state_dict())


def test_state_of_other_data_or_seed_is_refused():
    state = make('reverse').state_dict()
    with pytest.raises(ValueError, match='seed=0'):
        make('reverse', seed=1).load_state_dict(state)
    with pytest.raises(ValueError, match='num_images=71'):
        make('reverse', make_targets([3, 2]), num_samples=71).load_state_dict(state)
    with pytest.raises(ValueError, match='at most 71'):
        make('reverse').state_dict(position=72)


@pytest.mark.parametrize('name', NAMES)
def test_bad_input_is_a_clear_error(name):
    for bad, message in (([], 'not empty'), ([0, -1], 'labels must be in'), ([0.5, 1.0], 'whole numbers'),
                         ([[0, 1], [1, 0]], 'one-dimensional'), (['a', 'b'], 'labels of the training images'),
                         (TensorDataset(torch.zeros(2, 3)), 'get_targets')):
        with pytest.raises(ValueError, match=message):
            make(name, bad)
    with pytest.raises(ValueError, match='no training image'):
        make(name, [0, 1, 1], num_classes=3)
    with pytest.raises(ValueError, match='labels must be in'):
        make(name, [0, 1, 5], num_classes=3)
    with pytest.raises(ValueError, match='give both of num_replicas and rank'):
        make(name, num_replicas=2)
    with pytest.raises(ValueError, match='give both of num_replicas and rank'):
        make(name, rank=0)
    with pytest.raises(ValueError, match='rank must be in'):
        make(name, num_replicas=2, rank=2)
    with pytest.raises(ValueError, match='rank must be a whole number >= 0'):
        make(name, num_replicas=2, rank=-1)
    with pytest.raises(ValueError, match='num_samples'):
        make(name, num_samples=0)
    with pytest.raises(ValueError, match='seed'):
        make(name, seed=-1)
    with pytest.raises(ValueError, match='leaves nothing'):
        make(name, num_samples=3, num_replicas=4, rank=0, drop_last=True)
    with pytest.raises(ValueError, match='epoch'):
        make(name).set_epoch(-1)
    with pytest.raises(TypeError, match='no option'):
        make(name, num_sample=3)


def test_a_label_without_image_is_refused_where_the_law_needs_it():
    with pytest.raises(ValueError, match='no training image'):
        make('class_balanced', [0, 0, 2])
    assert sorted(make('instance_balanced', [0, 0, 2])) == [0, 1, 2]


def test_options_out_of_range_are_refused():
    for name, option in (('effective_number', {'beta': 1.1}), ('repeat_factor', {'threshold': 0}),
                         ('progressive', {'num_epochs': 0})):
        with pytest.raises(ValueError, match=next(iter(option))):
            make(name, **option)
    with pytest.raises(ValueError, match='labels of the training images'):
        timm_lt.create_sampler('reverse', None)
    with pytest.raises(TypeError, match="'progressive' needs num_epochs: pass num_epochs="):
        timm_lt.create_sampler('progressive', [0, 1])


@pytest.mark.parametrize('name', NAMES)
def test_one_image_and_one_class_work(name):
    assert set(make(name, [0], num_samples=3)) == {0}
    assert set(make(name, [0, 0], num_samples=4)) == {0, 1}
    assert len(make(name, [0, 1, 2])) >= 3


@pytest.mark.parametrize('name', NAMES)
def test_no_step_of_setup_or_epoch_loops_over_images(name, monkeypatch):
    # 100,000 images: the interpreter enters far fewer than one function call per image before indices are handed out
    targets = np.repeat(np.arange(1000), 100)
    calls = []
    sys.setprofile(lambda frame, event, arg: calls.append(event) if event in ('call', 'c_call') else None)
    try:
        sampler = make(name, targets)
        sampler.order(0)
    finally:
        sys.setprofile(None)
    assert len(calls) < 1000


# Division among processes


@pytest.mark.parametrize('split_batches', [False, True])
@pytest.mark.parametrize('processes', [1, 2, 4])
@pytest.mark.parametrize('name', ['instance_balanced', 'class_balanced'])
def test_accelerate_covers_an_undivided_sampler_exactly_once(name, processes, split_batches):
    sampler = make(name, num_samples=64)
    sampler.set_epoch(2)
    shards = [
        list(BatchSamplerShard(BatchSampler(sampler, 8, drop_last=True), processes, p, split_batches=split_batches))
        for p in range(processes)]
    check_not_divided(sampler)
    assert len({len(s) for s in shards}) == 1
    assert sorted(i for shard in shards for batch in shard for i in batch) == sorted(sampler)


@pytest.mark.parametrize('processes', [2, 4])
def test_dividing_twice_loses_images_and_is_refused(processes):
    divided = [make('instance_balanced', num_samples=64, num_replicas=processes, rank=p) for p in range(processes)]
    seen = [i for p, sampler in enumerate(divided)
            for batch in BatchSamplerShard(BatchSampler(sampler, 4, drop_last=True), processes, p) for i in batch]
    assert len(seen) == 64 // processes  # the trap: only a part of the epoch is trained on
    loader = DataLoader(range(71), batch_size=4, sampler=divided[0])
    for divided_thing in (divided[0], loader, loader.batch_sampler, BatchSamplerShard(loader.batch_sampler)):
        with pytest.raises(ValueError, match=f'among {processes} processes already'):
            check_not_divided(divided_thing)
    torch_sampler = DistributedSampler(range(71), num_replicas=processes, rank=0)
    with pytest.raises(ValueError, match='DistributedSampler'):
        check_not_divided(DataLoader(range(71), batch_size=4, sampler=torch_sampler))


def test_undivided_loaders_pass_the_check():
    check_not_divided(DataLoader(range(71), batch_size=4, shuffle=True))
    check_not_divided(DataLoader(range(71), batch_size=4, sampler=make('reverse')))
    check_not_divided(make('reverse', num_replicas=1, rank=0))
    check_not_divided(None)


def test_two_processes_prepared_by_accelerate_see_each_image_once(tmp_path):
    script = tmp_path / 'run.py'
    script.write_text(textwrap.dedent('''
        import sys
        import warnings
        import torch
        from accelerate import Accelerator
        from accelerate.utils import gather
        from torch.utils.data import DataLoader, TensorDataset
        from timm_lt import create_sampler
        from timm_lt.samplers import check_not_divided

        accelerator = Accelerator(cpu=True)
        assert accelerator.num_processes == 2
        targets = torch.arange(64) % 8
        sampler = create_sampler('class_balanced', targets, seed=3)
        loader = DataLoader(TensorDataset(torch.arange(64)), batch_size=8, sampler=sampler, drop_last=True)
        check_not_divided(loader)
        loader = accelerator.prepare(loader)
        for epoch in range(2):
            loader.set_epoch(epoch)
            steps = [torch.cat([batch for batch, in loader])]
            seen = gather(torch.cat(steps))
            assert sorted(seen.tolist()) == list(range(64)), seen
            assert len(seen) == 64 and sampler.epoch == epoch
            own = [i for k, i in enumerate(sampler.order(epoch).tolist()) if k // 8 % 2 == accelerator.process_index]
            assert steps[0].tolist() == own

        # resume in mid-epoch: the position in samples of all processes, the epoch through the loader
        state = sampler.state_dict(position=32)
        resumed = create_sampler('class_balanced', targets, seed=3)
        resumed.load_state_dict(state)
        loader = accelerator.prepare(DataLoader(
            TensorDataset(torch.arange(64)), batch_size=8, sampler=resumed, drop_last=True))
        loader.set_epoch(state['epoch'])
        rest = gather(torch.cat([batch for batch, in loader]))
        assert sorted(rest.tolist()) == sorted(sampler.order(1).tolist()[32:]), rest
        with warnings.catch_warnings(record=True) as caught:  # without it the loader starts at its own epoch 0
            warnings.simplefilter('always')
            resumed.load_state_dict(state)
            loader = accelerator.prepare(DataLoader(
                TensorDataset(torch.arange(64)), batch_size=8, sampler=resumed, drop_last=True))
            next(iter(loader))
        assert any('loader.set_epoch(1)' in str(w.message) for w in caught)
        if accelerator.is_main_process:
            open(sys.argv[1], 'w').write('done')
        accelerator.end_training()
    '''))
    done = tmp_path / 'done'
    result = subprocess.run(
        [sys.executable, '-m', 'torch.distributed.run', '--standalone', '--nproc_per_node', '2',
         str(script), str(done)], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0 and done.read_text() == 'done', result.stderr[-3000:]


def test_every_sampler_is_a_class_of_the_package():
    for info in timm_lt._registry.SAMPLERS.infos():
        assert issubclass(info.factory, LongTailSampler) and info.paper
        assert getattr(timm_lt.samplers, info.factory.__name__) is info.factory

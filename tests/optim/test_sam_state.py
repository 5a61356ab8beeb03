"""Checkpoints, copies, schedulers and Accelerate's wrapper around the sharpness-aware optimizers."""

import copy
import io
import pickle

import pytest
import timm
import torch
import torch.nn as nn
from sam_reference import CLASS_AWARE, NAMES, assert_bit_equal, make_batch, make_model, make_optimizer
from timm.scheduler import CosineLRScheduler
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from timm_lt.optim import BatchClosure, optimizer_step

BASES = ('momentum', 'adamw')


def train(model, optimizer, steps, start=0, accelerator=None):
    for step in range(start, start + steps):
        if hasattr(optimizer, 'set_epoch'):
            optimizer.set_epoch(step, 10)
        x, y = make_batch(seed=step, dtype=torch.float32)
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))


def make(name, base='momentum', **options):
    model = make_model('batch', torch.float32)
    return model, make_optimizer(model, name, base=base, every=2, **options)


@pytest.mark.parametrize('base', BASES)
@pytest.mark.parametrize('name', [*NAMES, 'lookahead_sam', 'lookahead_ssesam'])
def test_resume_from_a_state_dict_is_bit_exact_base_momentum_included(name, base):
    model, optimizer = make(name, base)
    train(model, optimizer, 5)
    file = io.BytesIO()
    torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, file)
    train(model, optimizer, 5, start=5)

    resumed, other = make(name, base)
    file.seek(0)
    saved = torch.load(file, weights_only=True)
    resumed.load_state_dict(saved['model'])
    other.load_state_dict(saved['optimizer'])
    train(resumed, other, 5, start=5)
    assert_bit_equal(model.state_dict(), resumed.state_dict())


def test_own_state_is_restored_stage_and_step_included():
    _, optimizer = make('ssesam')
    optimizer.set_epoch(8, 10)
    optimizer._own['step'] = 3
    _, other = make('ssesam')
    other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    assert other.epoch == 8 and other.num_epochs == 10 and not other.first_stage and other._own['step'] == 3


@pytest.mark.parametrize('how', [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))], ids=['copy', 'pickle'])
@pytest.mark.parametrize('name', NAMES)  # timm's Lookahead loses its base in a copy, whatever the base
def test_copies_and_pickles_continue_bit_equal(name, how):
    model, optimizer = make(name)
    train(model, optimizer, 3)
    other_model, other = how((model, optimizer))
    for m, o in ((model, optimizer), (other_model, other)):
        train(m, o, 4, start=3)
    assert_bit_equal(model.state_dict(), other_model.state_dict())


@pytest.mark.parametrize('name', NAMES)
def test_checkpoint_of_the_bare_base_loads(name):
    model = make_model('batch', torch.float32)
    base = timm.optim.create_optimizer_v2(list(model.parameters()), 'momentum', lr=0.3)
    x, y = make_batch(dtype=torch.float32)
    base.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    model, optimizer = make(name)
    optimizer.load_state_dict(base.state_dict())
    assert optimizer.param_groups[0]['lr'] == 0.3
    momenta = [s['momentum_buffer'] for s in optimizer.state.values()]
    assert len(momenta) == 6 and all(
        torch.equal(a, s['momentum_buffer']) for a, s in zip(momenta, base.state.values()))


@pytest.mark.parametrize('name', NAMES)
def test_groups_state_and_defaults_are_those_of_the_base(name):
    _, optimizer = make(name)
    assert optimizer.param_groups is optimizer.base.param_groups
    assert optimizer.state is optimizer.base.state and optimizer.defaults is optimizer.base.defaults
    optimizer.add_param_group({'params': [nn.Parameter(torch.zeros(2))], 'lr': 0.5})
    assert optimizer.base.param_groups[-1]['lr'] == 0.5
    assert isinstance(optimizer, torch.optim.Optimizer)


def test_skipped_step_leaves_the_own_state_as_it_was():
    model, optimizer = make('sam')
    x, y = make_batch(dtype=torch.float32)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    optimizer.zero_grad()  # what follows a step that the scaler skipped
    assert optimizer.state_dict() == before
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    optimizer.step()
    assert optimizer.state_dict()['sharpness_aware']['step'] == 1


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip('accelerate')
    accelerate.state.AcceleratorState._reset_state(True)
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(True)


@pytest.mark.parametrize('name', ['ssesam', 'sam', 'lookahead_imbsam'])
def test_resume_through_accelerate_is_bit_exact(name, accelerator, tmp_path):
    model, optimizer = accelerator.prepare(*make(name))
    train(model, optimizer, 5, accelerator=accelerator)
    accelerator.save_state(str(tmp_path))
    train(model, optimizer, 5, start=5, accelerator=accelerator)
    expected = {k: v.clone() for k, v in model.state_dict().items()}
    accelerator.load_state(str(tmp_path))
    train(model, optimizer, 5, start=5, accelerator=accelerator)
    assert_bit_equal(model.state_dict(), expected)


@pytest.mark.parametrize('name', [*NAMES, 'lookahead_sam'])
def test_learning_rate_of_the_scheduler_reaches_the_base_after_prepare_and_load(name, accelerator):
    model, optimizer = accelerator.prepare(*make(name))
    scheduler = CosineLRScheduler(optimizer, t_initial=10, warmup_t=2, warmup_lr_init=0.01)
    inner = optimizer.optimizer
    inner = getattr(inner, '_base_optimizer', inner)
    for epoch in range(4):
        scheduler.step(epoch)
        if epoch == 2:
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        assert inner.base.param_groups[0]['lr'] == optimizer.param_groups[0]['lr'] == scheduler._get_lr(epoch)[0]
    before = {k: v.clone() for k, v in model.named_parameters()}
    for group in optimizer.param_groups:
        group['lr'] = 0.0
    train(model, optimizer, 1, accelerator=accelerator)
    assert all(torch.equal(before[k], p) for k, p in model.named_parameters())


@pytest.mark.parametrize('name', NAMES)
def test_torch_schedulers_accept_the_optimizer(name):
    model, optimizer = make(name)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.5)
    x, y = make_batch(dtype=torch.float32)
    optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    scheduler.step()
    assert optimizer.base.param_groups[0]['lr'] == 0.05
    model, optimizer = pickle.loads(pickle.dumps((model, optimizer)))
    optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))


def test_step_hooks_run_once_per_step():
    model, optimizer = make('sam')
    calls = []
    optimizer.register_step_pre_hook(lambda *_: calls.append('pre'))
    optimizer.register_step_post_hook(lambda *_: calls.append('post'))
    x, y = make_batch(dtype=torch.float32)
    optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    assert calls == ['pre', 'post']


class LiveBytes(TorchDispatchMode):
    """Largest number of bytes alive at one moment, of tensors made inside the block."""

    def __init__(self):
        super().__init__()
        self.live, self.peak = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        known = {StorageWeakRef(t.untyped_storage()).cdata for t in tree_leaves((args, kwargs)) if torch.is_tensor(t)}
        out = func(*args, **(kwargs or {}))
        for t in tree_leaves(out):
            if torch.is_tensor(t):
                ref = StorageWeakRef(t.untyped_storage())
                if ref.cdata not in known:
                    self.live[ref.cdata] = (ref, t.untyped_storage().nbytes())
        self.live = {k: v for k, v in self.live.items() if not v[0].expired()}
        self.peak = max(self.peak, sum(size for _, size in self.live.values()))
        return out


@pytest.mark.parametrize('name, copies', [('sam', 1), ('asam', 1), ('imbsam', 2), ('ssesam', 2), ('focalsam', 2)])
def test_peak_memory_is_one_extra_copy_of_the_parameters_or_two_with_a_kept_gradient(name, copies):
    def peak(name):
        model = nn.Sequential(*[nn.Linear(256, 256, bias=False) for _ in range(8)], nn.Linear(256, 6))
        optimizer = make_optimizer(model, name, weight_decay=0.0)
        _, y = make_batch()
        x = torch.randn(12, 256)
        for _ in range(2):
            with LiveBytes() as live:
                optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        return live.peak / sum(p.numel() * p.element_size() for p in model.parameters())

    extra = peak(name) - peak('momentum')
    assert copies - 0.5 < extra < copies + 0.3, extra


def test_no_extra_tensors_are_held_after_a_step():
    for name in (*CLASS_AWARE, 'sam'):
        model, optimizer = make(name)
        train(model, optimizer, 2)
        own = [v for v in vars(optimizer).values() if torch.is_tensor(v)]
        assert all(len(t) <= 6 for t in own)  # nothing but tables of classes
        assert all(set(s) == {'momentum_buffer'} for s in optimizer.state.values())

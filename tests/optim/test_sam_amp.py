"""Loss scaling: a CPU gradient scaler put into an Accelerator, which by itself would run fp32 on a CPU."""

import contextlib
import copy

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from sam_reference import (
    CLASS_AWARE,
    NAMES,
    Overflowing,
    assert_bit_equal,
    flat,
    make_batch,
    make_model,
    make_optimizer,
)
from timm.scheduler import CosineLRScheduler
from timm.utils import ModelEmaV3

from timm_lt.optim import BatchClosure, optimizer_step
from timm_lt.optim.engine.radius import scale_of

ALL = ('momentum', *NAMES, 'lookahead_sam', 'lookahead_imbsam')


@pytest.fixture
def accelerator():
    accelerate = pytest.importorskip('accelerate')
    accelerate.state.AcceleratorState._reset_state(True)
    yield accelerate.Accelerator(cpu=True)
    accelerate.state.AcceleratorState._reset_state(True)


def scaled(accelerator, init_scale=2.0 ** 10, autocast=None, **options):
    accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=init_scale, **options)
    if autocast is not None:
        accelerator.autocast = lambda: torch.autocast('cpu', autocast)
    return accelerator


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', ALL)
def test_changing_loss_scale_gives_the_same_as_no_scale(name, norm, accelerator):
    results = []
    for scale in (False, True):
        model = make_model(norm)
        if scale:
            scaled(accelerator, growth_interval=2, growth_factor=8.0)
        else:
            accelerator.scaler = None
        model, optimizer = accelerator.prepare(model, make_optimizer(model, name))
        for step in range(6):
            x, y = make_batch(seed=step)
            closure = BatchClosure(model, nn.CrossEntropyLoss(), list(x.split(7)), list(y.split(7)), accelerator)
            result = optimizer_step(optimizer, closure, clip_grad=0.05)
            assert not result.skipped
        results.append(flat(model.parameters()))
    assert accelerator.scaler.get_scale() == 2.0 ** 10 * 8 ** 3
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', ALL)
def test_overflow_in_any_pass_skips_the_step_and_changes_nothing(name, norm, accelerator):
    scaled(accelerator)
    model = make_model(norm, torch.float32)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, name))
    scheduler, ema = CosineLRScheduler(optimizer, t_initial=100), ModelEmaV3(model, decay=0.5)
    x, y = make_batch(dtype=torch.float32)
    updates = 0

    def step(criterion):
        nonlocal updates
        result = optimizer_step(optimizer, BatchClosure(model, criterion, x, y, accelerator), clip_grad=1.0)
        if not result.skipped:
            updates += 1
            scheduler.step_update(updates)
            ema.update(model)
        return result.skipped

    counting = Overflowing()
    assert not step(counting)
    for at in range(counting.calls):
        before = copy.deepcopy((model.state_dict(), optimizer.state_dict(), ema.state_dict(), updates))
        scale = accelerator.scaler.get_scale()
        assert step(Overflowing(at)), at
        assert accelerator.scaler.get_scale() == scale / 2
        assert_bit_equal(model.state_dict(), before[0])
        assert_bit_equal(ema.state_dict(), before[2])
        after = optimizer.state_dict()
        assert after['param_groups'] == before[1]['param_groups']
        assert after.get('sharpness_aware') == before[1].get('sharpness_aware') and updates == before[3]
        for i, state in before[1]['state'].items():
            assert_bit_equal(state, after['state'][i])
        assert not step(Overflowing())


@pytest.mark.parametrize('name', NAMES)
def test_half_precision_autocast_follows_the_full_precision_step(name, accelerator):
    x, y = make_batch(dtype=torch.float32)
    results = []
    for half in (False, True):
        model = make_model('group', torch.float32)
        accelerator.scaler, accelerator.autocast = None, contextlib.nullcontext
        if half:
            scaled(accelerator, autocast=torch.float16)
        model, optimizer = accelerator.prepare(model, make_optimizer(model, name))
        before = flat(model.parameters())
        optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))
        results.append(flat(model.parameters()) - before)
    assert F.cosine_similarity(*results, dim=0) > 0.999
    torch.testing.assert_close(*results, rtol=0.05, atol=1e-3)


@pytest.mark.parametrize('name', NAMES)
def test_perturbation_is_seen_under_autocast(name, accelerator):
    # the cast weights of the first pass must not serve the second
    x, y = make_batch(dtype=torch.float32)
    scaled(accelerator, autocast=torch.bfloat16)
    own = {'rho_head': 5.0, 'rho_tail': 5.0} if name == 'ssesam' else {'rho': 5.0}
    seen = []

    class Recording(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            value = super().forward(logits, target)
            seen.append(value.detach().float().mean())
            return value

    model = make_model('batch', torch.float32)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, name, **own))
    optimizer_step(optimizer, BatchClosure(model, Recording(), x, y, accelerator))
    assert (seen[-1] - seen[0]).abs() > 0.1


def test_grads_of_compute_grads_still_carry_the_loss_scale(accelerator):
    x, y = make_batch()
    for name in NAMES:
        gradients = []
        for scale in (1.0, 2.0 ** 12):
            scaled(accelerator, init_scale=scale)
            model = make_model('batch')
            optimizer = make_optimizer(model, name)
            optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))
            gradients.append(flat(p.grad for p in model.parameters()) / scale)
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', NAMES)
def test_policies_see_gradients_without_the_loss_scale(name, accelerator):
    x, y = make_batch()
    norms = []
    for scale in (1.0, 2.0 ** 12):
        scaled(accelerator, init_scale=scale)
        model = make_model('batch')
        optimizer = make_optimizer(model, name)
        perturb = optimizer.perturb

        def watching(parts, perturb=perturb):
            norms.append(torch.stack([flat(part.grads).norm() for part in parts]))
            perturb(parts)

        optimizer.perturb = watching
        optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))
    torch.testing.assert_close(*norms, rtol=1e-9, atol=1e-12)


def test_a_gradient_that_overflowed_spoils_its_whole_perturbation():
    assert scale_of(0.1, torch.tensor(float('inf'))).isnan() and scale_of(0.1, torch.tensor(float('nan'))).isnan()
    assert torch.isfinite(scale_of(0.1, torch.tensor(0.0))) and scale_of(0.1, torch.tensor(2.0)) == pytest.approx(0.05)


def test_plain_closure_tells_its_scale_by_argument():
    x, y = make_batch()
    gradients = []
    for scale in (None, 4096.0):
        model = make_model('group')
        optimizer = make_optimizer(model, 'sam')

        def closure(model=model, optimizer=optimizer, scale=scale):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            (loss * (scale or 1.0)).backward()
            return loss

        optimizer.compute_grads(closure, grad_scale=scale)
        gradients.append(flat(p.grad for p in model.parameters()) / (scale or 1.0))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


def test_step_with_a_closure_under_a_scaler_is_refused_instead_of_stepping_on_scaled_gradients(accelerator):
    scaled(accelerator)
    x, y = make_batch()
    model = make_model()
    for name in (*CLASS_AWARE, 'sam'):
        with pytest.raises(RuntimeError, match='optimizer_step'):
            make_optimizer(model, name).step(BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))
    with pytest.raises(RuntimeError, match='prepare'):
        optimizer_step(make_optimizer(model, 'sam'), BatchClosure(model, nn.CrossEntropyLoss(), x, y, accelerator))


def test_accumulation_steps_of_accelerate_are_refused(accelerator):
    accelerator.gradient_accumulation_steps = 4
    x, y = make_batch()
    with pytest.raises(ValueError, match='gradient_accumulation_steps=4'):
        BatchClosure(make_model(), nn.CrossEntropyLoss(), x, y, accelerator)

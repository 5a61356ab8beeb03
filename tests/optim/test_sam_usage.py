"""Sharpness-aware optimizers in the hands of a user: own loops, odd models, wrong arguments."""

import numpy as np
import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from accelerate import Accelerator
from sam_reference import (
    CLASS_AWARE,
    COUNTS,
    ETA,
    NAMES,
    OWN,
    flat,
    make_batch,
    make_model,
    make_optimizer,
    reference_gradient,
)

import timm_lt
from timm_lt.optim import BatchClosure, optimizer_step, set_epoch

CE = nn.CrossEntropyLoss()


class Centring(nn.Module):
    """A network whose samples meet although it has no buffer."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.hidden, self.fc = nn.Linear(50, 8), nn.Linear(8, len(COUNTS))

    def forward(self, x):
        x = self.hidden(x.flatten(1))
        return self.fc(torch.tanh(x - x.mean(0)))


@pytest.mark.parametrize('name', CLASS_AWARE)
def test_samples_that_meet_without_buffers_pass_as_a_whole_batch(name):
    model = Centring().double()
    x, y = make_batch()
    make_optimizer(model, name).compute_grads(BatchClosure(model, CE, x, y))
    expected = reference_gradient(model, name, x, y, OWN[name])
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), flat(expected.values()), rtol=1e-9, atol=1e-12)


# Statistics of a loss, once per batch however the optimizer is called


@pytest.mark.parametrize('name', ['sgd', *NAMES, 'gsa', 'ccsam'])
def test_statistics_count_a_batch_once_when_the_optimizer_is_stepped_with_a_closure(name):
    model, reference = make_model('group'), timm_lt.create_loss('gala', COUNTS)
    loss = timm_lt.create_loss('gala', COUNTS)
    x, y = make_batch()
    reference(model(x), y)
    options = {'class_counts': COUNTS} if name in ('gsa', 'ccsam') else {}
    optimizer = make_optimizer(model, name, **options)
    optimizer.step(BatchClosure(model, loss, x, y))
    assert reference.gradient_sum.sum() > 0
    torch.testing.assert_close(loss.gradient_sum, reference.gradient_sum)
    assert not loss.pending.any()


@pytest.mark.parametrize('name', ['sam', 'asam'])
def test_statistics_count_a_batch_once_under_a_plain_closure(name):
    model, reference = make_model('group'), timm_lt.create_loss('gala', COUNTS)
    loss = timm_lt.create_loss('gala', COUNTS)
    x, y = make_batch()
    reference(model(x), y)
    optimizer = make_optimizer(model, name)

    def closure():
        optimizer.zero_grad()
        value = loss(model(x), y)
        value.backward()
        return value

    optimizer.step(closure)
    torch.testing.assert_close(loss.gradient_sum, reference.gradient_sum)
    loss(model(x), y)  # taken again outside the step
    assert loss.gradient_sum.sum() > reference.gradient_sum.sum()


def test_an_optimizer_that_evaluates_a_closure_often_counts_its_batch_once():
    model, loss = make_model('group'), timm_lt.create_loss('gala', COUNTS)
    x, y = make_batch()
    reference = timm_lt.create_loss('gala', COUNTS)
    reference(model(x), y)
    torch.optim.LBFGS(model.parameters(), max_iter=4).step(BatchClosure(model, loss, x, y))
    torch.testing.assert_close(loss.gradient_sum, reference.gradient_sum)


# A part of the model, norms


@pytest.mark.parametrize('name', NAMES)
def test_parameters_of_another_optimizer_get_one_gradient_and_no_perturbation(name):
    x, y = make_batch()
    whole, half = make_model('batch'), make_model('batch')
    everything = make_optimizer(whole, name, layers=['conv*', 'norm*'])
    own = {**OWN[name], **({'class_counts': COUNTS} if name in CLASS_AWARE else {})}
    ours = timm.optim.create_optimizer_v2([*half.conv.parameters(), *half.norm.parameters()], name, lr=0.1, **own)
    everything.compute_grads(BatchClosure(whole, CE, x, y))
    ours.compute_grads(BatchClosure(half, CE, x, y))
    torch.testing.assert_close(
        flat(p.grad for p in half.parameters()), flat(p.grad for p in whole.parameters()), rtol=1e-12, atol=0)


def test_adaptive_radius_of_a_class_aware_method():
    model = make_model('group')
    x, y = make_batch()
    tail = torch.tensor(COUNTS)[y] < ETA

    def gradients():
        values = F.cross_entropy(model(x), y, reduction='none') / len(y)
        params = list(model.parameters())
        return [torch.autograd.grad(values[m].sum(), params, retain_graph=True) for m in (~tail, tail)]

    head, ascent = gradients()
    norm = flat([p * g for p, g in zip(model.parameters(), ascent)]).norm()
    moved = make_model('group')
    with torch.no_grad():
        for p, g in zip(moved.parameters(), ascent):
            p += 0.1 * p.square() * g / norm
    model_before, model = model, moved
    expected = [a + b for a, b in zip(head, gradients()[1])]
    make_optimizer(model_before, 'imbsam', adaptive=True).compute_grads(BatchClosure(model_before, CE, x, y))
    torch.testing.assert_close(flat(p.grad for p in model_before.parameters()), flat(expected), rtol=1e-9, atol=1e-12)
    with pytest.raises(ValueError, match='defines its own perturbation'):
        make_optimizer(model, 'ccsam', class_counts=COUNTS, adaptive=True)


def test_half_precision_weights_survive_a_gradient_of_zero():
    model = nn.Linear(4, 6).half()
    with torch.no_grad():
        model.weight.zero_(), model.bias.copy_(torch.tensor([60.0] + [-60.0] * 5))
    optimizer = timm.optim.create_optimizer_v2(model, 'sam', lr=0.1)
    optimizer.step(BatchClosure(model, CE, torch.ones(3, 4).half(), torch.zeros(3, dtype=torch.int64)))
    assert all(torch.isfinite(p).all() for p in model.parameters())


# Told by the loop


def test_epochs_reach_the_optimizer_under_wrappers():
    model = make_model()
    prepared = Accelerator(cpu=True).prepare(make_optimizer(model, 'ssesam'))
    ahead = make_optimizer(model, 'lookahead_ssesam')
    for optimizer in (prepared, ahead):
        set_epoch(optimizer, 8, 10)
        assert not timm_lt.optim.find_sharpness_aware(optimizer).first_stage
    set_epoch(torch.optim.SGD(model.parameters(), lr=0.1), 8, 10)


def test_ssesam_says_once_that_it_knows_no_number_of_epochs():
    model = make_model('group')
    optimizer, closure = make_optimizer(model, 'ssesam'), BatchClosure(model, CE, *make_batch())
    with pytest.warns(UserWarning, match='set_epoch') as caught:
        optimizer.step(closure)
        optimizer.step(closure)
    assert sum('number of epochs' in str(w.message) for w in caught) == 1


# Wrong use


def test_a_plain_closure_under_a_gradient_scaler_is_refused():
    accelerator = Accelerator(cpu=True)
    accelerator.scaler = torch.amp.GradScaler('cpu', init_scale=1024.0)
    model = make_model('group', torch.float32)
    model, optimizer = accelerator.prepare(model, make_optimizer(model, 'sam'))
    x, y = make_batch(dtype=torch.float32)

    def closure():
        optimizer.zero_grad()
        loss = CE(model(x), y)
        accelerator.backward(loss)
        return loss

    before = flat(model.parameters())
    closure()
    with pytest.raises(RuntimeError, match='gradient scaler'):
        optimizer.step(closure)
    assert torch.equal(before, flat(model.parameters()))


def test_an_accelerator_given_with_the_step_is_checked_too():
    model = make_model('group')
    optimizer, closure = make_optimizer(model, 'sam'), BatchClosure(model, CE, *make_batch())
    with pytest.raises(ValueError, match='gradient_accumulation_steps=4'):
        optimizer_step(optimizer, closure, Accelerator(cpu=True, gradient_accumulation_steps=4))


def test_wrong_arguments_are_named():
    model = make_model('group')
    x, y = make_batch()
    with pytest.raises(TypeError, match="'batchnrom'.*'batchnorm'"):
        make_optimizer(model, 'imbsam', batchnrom='stacked')
    with pytest.raises(TypeError, match="'rho_shedule'.*'rho_schedule'"):
        make_optimizer(model, 'asam', rho_shedule='cosine')
    with pytest.raises(ValueError, match="'nothing\\*'.*conv.weight"):
        make_optimizer(model, 'imbsam', layers='nothing*').step(BatchClosure(model, CE, x, y))
    with pytest.raises(TypeError, match='BatchClosure'):
        optimizer_step(make_optimizer(model, 'sam'), lambda: CE(model(x), y))
    with pytest.raises(ValueError, match='12 inputs and 5 targets'):
        BatchClosure(model, CE, x, y[:5])
    with pytest.raises(ValueError, match='floating-point'):
        make_optimizer(model, 'imbsam').step(BatchClosure(model, CE, x, F.one_hot(y, 6)))
    with pytest.raises(TypeError, match='every'):
        make_optimizer(model, 'sam', every='2')
    for base in ('foo_adamw', 'sse_sgd'):
        with pytest.raises(ValueError, match='is not an optimizer of timm'):
            make_optimizer(model, 'sam', base=base)


def test_numbers_of_numpy_and_small_integer_labels_are_accepted():
    model = make_model('group')
    x, y = make_batch()
    optimizer = make_optimizer(model, 'imbsam', eta=np.int64(ETA), rho=np.float32(0.125))
    optimizer.compute_grads(BatchClosure(model, CE, x, y, labels=y.to(torch.uint8)))
    found = flat(p.grad for p in model.parameters())
    make_optimizer(model, 'imbsam', rho=0.125).compute_grads(BatchClosure(model, CE, x, y))
    assert torch.equal(found, flat(p.grad for p in model.parameters()))

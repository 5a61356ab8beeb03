"""``first_step`` and ``second_step``: the trajectory of ``step(closure)``, and calls in the wrong order."""

import copy
import pickle

import pytest
import torch
import torch.nn.functional as F
from sam_reference import assert_bit_equal, make_batch, make_model, make_optimizer, state_of

from timm_lt import create_loss

OWN = {
    'sam': {'rho': 0.1},
    'asam': {'rho': 0.7, 'eta': 0.01},
    'gsam': {'rho': 0.2, 'alpha': 0.3},
    'gnp': {'rho': 0.2, 'alpha': 0.7},
    'friendlysam': {'rho': 0.2, 'sigma': 0.9, 'lmbda': 0.6},
    'looksam': {'rho': 0.2, 'every': 3},
}


def make(name, attach=True, **options):
    model = make_model('batch', torch.float32)
    optimizer = make_optimizer(model, name, **{**OWN[name], **options})
    if attach:
        optimizer.attach(model)
    return model, optimizer


def backward(model, seed, loss=F.cross_entropy):
    x, y = make_batch(seed=seed, dtype=torch.float32)
    value = loss(model(x), y)
    value.backward()
    return value


def two_calls(model, optimizer, seed, zero_grad=True, loss=F.cross_entropy):
    for finish in optimizer.first_step, optimizer.second_step:
        backward(model, seed, loss)
        finish(zero_grad=zero_grad)
        if not zero_grad:
            optimizer.zero_grad()


def one_call(model, optimizer, seed):
    def closure():
        optimizer.zero_grad()
        return backward(model, seed)

    optimizer.step(closure)
    optimizer.zero_grad()


@pytest.mark.parametrize('base', ['momentum', 'adamw'])
@pytest.mark.parametrize('options', [{}, {'every': 2}, {'layers': 'fc*'}], ids=['', 'every', 'layers'])
@pytest.mark.parametrize('name', OWN)
def test_trajectory_is_that_of_a_step_with_a_closure(name, options, base):
    states = []
    for step in two_calls, one_call:
        model, optimizer = make(name, base=base, **options)
        for seed in range(5):
            step(model, optimizer, seed)
        states.append((model.state_dict(), optimizer.state_dict()))
    (ours, own), (expected, theirs) = states
    assert_bit_equal(ours, expected)  # buffers too
    assert own['sharpness_aware'] == theirs['sharpness_aware']
    for a, b in zip(own['state'].values(), theirs['state'].values()):
        assert_bit_equal(a, b)


@pytest.mark.parametrize('name', OWN)
def test_gradients_may_be_cleared_by_the_caller(name):
    (model, optimizer), (other, its) = make(name), make(name)
    for seed in range(3):
        two_calls(model, optimizer, seed)
        two_calls(other, its, seed, zero_grad=False)
    assert_bit_equal(model.state_dict(), other.state_dict())


def test_weights_are_perturbed_between_the_calls_alone():
    model, optimizer = make('sam', weight_decay=0.0)
    before = state_of(model)
    backward(model, 0)
    optimizer.first_step(zero_grad=True)
    moved = torch.cat([(p - before[k]).flatten() for k, p in model.named_parameters()]).detach()
    assert moved.norm() == pytest.approx(0.1, rel=1e-4)
    optimizer.second_step()  # no gradient: restored, and nothing to step by
    assert all(torch.equal(before[k], p) for k, p in model.named_parameters())


def test_a_loss_counts_statistics_at_the_first_pass_alone():
    losses = []
    for attach in True, False:
        model, optimizer = make('sam')
        loss = create_loss('gala', class_counts=[90, 40, 25, 9, 5, 2])
        if attach:
            two_calls(model, optimizer, 0, loss=loss)
        else:
            backward(model, 0, loss)
        losses.append(loss.state_dict())
    assert_bit_equal(*losses)


def test_calls_in_the_wrong_order_are_refused():
    model, optimizer = make('sam')
    with pytest.raises(RuntimeError, match=r'needs first_step\(\)'):
        optimizer.second_step()
    with pytest.raises(RuntimeError, match='no gradient'):
        optimizer.first_step()
    backward(model, 0)
    optimizer.first_step(zero_grad=True)
    backward(model, 0)
    for call in optimizer.first_step, optimizer.step, lambda: optimizer.step(lambda: backward(model, 0)):
        with pytest.raises(RuntimeError, match=r'call second_step\(\) first'):
            call()
    optimizer.second_step()


def test_options_that_cannot_hold_are_refused():
    model, optimizer = make('sam', local_ascent=True)
    backward(model, 0)
    with pytest.raises(ValueError, match=r'model.no_sync\(\)'):
        optimizer.first_step()
    model, optimizer = make('sam')
    backward(model, 0)
    with torch.autocast('cpu', torch.bfloat16), pytest.raises(RuntimeError, match='inside torch.autocast'):
        optimizer.first_step()
    model = make_model()
    with pytest.raises(TypeError, match=r'no two-call form; use step\(closure\)'):
        make_optimizer(model, 'rwp').first_step()
    assert not hasattr(make_optimizer(model, 'imbsam'), 'first_step')


@pytest.mark.parametrize('copied', [copy.deepcopy, lambda o: pickle.loads(pickle.dumps(o))])
def test_a_copy_has_no_step_begun(copied):
    model, optimizer = make('sam')
    backward(model, 0)
    optimizer.first_step()
    with pytest.raises(RuntimeError, match=r'needs first_step\(\)'):
        copied(optimizer).second_step()
    optimizer.second_step()

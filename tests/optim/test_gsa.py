"""GSA as an optimizer against a plain reference, with groups, penalty and every treatment of BatchNorm."""

import copy
import math

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from gsa_cases import GROUPS, SAMPLES, Net, make, penalty_of, problem

from timm_lt.optim import BatchClosure


def reference_gradient(
        model, x, y, *, Z=1e-2, direction='orthogonal', part_loss='group_mean', weighting='share', alpha=1.0,
        penalty=None):
    """The paper's step, one group at a time, every pass on the whole batch; returns the gradient as a list."""
    model = copy.deepcopy(model)
    theta = list(model.parameters())
    start = [p.detach().clone() for p in theta]
    group = torch.tensor(GROUPS)[y]
    present = group.unique().tolist()
    count = {k: int((group == k).sum()) for k in present}

    def gradient(mask, divisor, eps=None):
        with torch.no_grad():
            for i, p in enumerate(theta):
                p.copy_(start[i] if eps is None else start[i] + eps[i])
        losses = F.cross_entropy(model(x), y, reduction='none')
        return torch.autograd.grad(losses[mask].sum() / divisor, theta)

    def flat(tensors):
        return torch.cat([t.flatten() for t in tensors])

    batch = flat(gradient(torch.ones_like(y, dtype=torch.bool), len(y)))
    size, length = batch.numel(), flat(start).norm()
    total = [torch.zeros_like(p) for p in theta]
    for k in present:
        g = flat(gradient(group == k, count[k] if part_loss == 'group_mean' else len(y)))
        along = (g @ batch) / (batch @ batch) * batch
        h = {'orthogonal': g - along, 'gradient': g, 'projection': along}[direction]
        eps = torch.zeros_like(h)
        if len(present) > 1:
            radius = math.sqrt(length / (2 * h.norm())) * size ** -0.25 * max(SAMPLES[k] - 1, 1) ** -0.25
            eps = Z * math.sqrt(size) * radius * h / h.norm()
        eps = [e.view_as(p) for e, p in zip(eps.split([p.numel() for p in theta]), theta)]
        for t, g in zip(total, gradient(group == k, len(y) if weighting == 'share' else count[k], eps)):
            t += g
    if penalty is not None:
        total = [alpha * t + (1 - alpha) * g for t, g in zip(total, penalty)]
    return total


def gradients(model):
    return [p.grad for p in model.parameters()]


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('options', [
    {}, {'part_loss': 'batch_mean'}, {'weighting': 'equal'}, {'weighting': 'equal', 'part_loss': 'batch_mean'},
    {'Z': 0.3}, {'direction': 'gradient'}, {'direction': 'projection', 'weighting': 'equal'},
], ids=str)
def test_gsa_matches_plain_reference(norm, options):
    model, x, y = problem(norm)
    expected = reference_gradient(model, x, y, **options)
    make(model, **options).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)


def test_gsa_differs_from_the_plain_gradient_and_returns_the_loss():
    model, x, y = problem()
    loss = F.cross_entropy(copy.deepcopy(model)(x), y)
    returned = make(model).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    torch.testing.assert_close(returned, loss.detach())
    perturbed = gradients(model)
    model.zero_grad()
    F.cross_entropy(model(x), y).backward()
    assert not torch.allclose(perturbed[0], gradients(model)[0], rtol=1e-4)


@pytest.mark.parametrize('classes', [[0, 1], [4]], ids=['one group', 'one class of one image'])
def test_batch_of_one_group_gets_the_plain_gradient(classes):
    model, x, y = problem('group')
    y = torch.tensor(classes).repeat(len(y))[:len(y)]
    expected = torch.autograd.grad(F.cross_entropy(model(x), y), list(model.parameters()))
    make(model).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    torch.testing.assert_close(gradients(model), list(expected), rtol=1e-10, atol=1e-13)


def test_float32_batch_of_one_group_is_not_perturbed_by_rounding():
    model, x, y = problem('group')
    model, x, y = model.float(), x.float(), torch.zeros_like(y)
    optimizer = make(model, Z=100.0)
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    assert optimizer.radii_of_last_step == {0: 0.0}


@pytest.mark.parametrize('options', [{'Z': 0.0}, {'groups': [0] * 5}], ids=['Z=0', 'one group'])
def test_gsa_without_perturbation_is_bit_equal_to_base(options):
    model, x, y = problem()
    other = copy.deepcopy(model)
    optimizer = make(model, **options)
    base = timm.optim.create_optimizer_v2(other, 'momentum', lr=0.1, momentum=0.9, weight_decay=1e-3)
    for _ in range(3):
        optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        base.zero_grad()
        F.cross_entropy(other(x), y).backward()
        base.step()
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


@pytest.mark.parametrize('options', [
    {}, {'batchnorm': 'stacked'}, {'batchnorm': 'exact_ascent'}], ids=str)
def test_gsa_restores_weights_and_updates_batchnorm_once(options):
    model, x, y = problem()
    optimizer = make(model, **options)
    weights = [p.detach().clone() for p in model.parameters()]
    plain = copy.deepcopy(model)
    plain(x)
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    assert all(torch.equal(p, w) for p, w in zip(model.parameters(), weights))
    for mine, once in zip(model.buffers(), plain.buffers()):
        torch.testing.assert_close(mine, once, rtol=1e-12, atol=1e-12)


def test_micro_batches_equal_one_batch_without_batchnorm():
    model, x, y = problem('group')
    expected = reference_gradient(model, x, y)
    cut = [slice(0, 3), slice(3, 8), slice(8, 10)]
    closure = BatchClosure(model, nn.CrossEntropyLoss(), [x[c] for c in cut], [y[c] for c in cut])
    make(model).compute_grads(closure)
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('norm', ['batch', 'group'])
def test_total_is_alpha_gsa_plus_penalty_of_the_encoder(norm):
    model, x, y = problem(norm)
    penalty = penalty_of(model).quadratic()
    head = [torch.zeros_like(p) for p in model.head.parameters()]
    expected = reference_gradient(model, x, y, alpha=0.7, penalty=penalty.gradients() + head)
    optimizer = make(model)
    optimizer.set_penalty(penalty, alpha=0.7)
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)


def test_alpha_acts_without_a_penalty():
    model, x, y = problem()
    expected = [0.6 * g for g in reference_gradient(model, x, y)]
    optimizer = make(model)
    optimizer.set_penalty(None, alpha=0.6)
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    torch.testing.assert_close(gradients(model), expected, rtol=1e-9, atol=1e-12)


def test_set_groups_changes_the_step_and_is_saved():
    model, x, y = problem()
    optimizer = make(model, groups='size', num_groups=2)
    assert optimizer.groups.tolist() == [0, 0, 0, 1, 1] and optimizer.samples_of_group == [142, 6]
    optimizer.set_groups(torch.tensor(GROUPS))
    optimizer.set_penalty(None, alpha=0.8)
    resumed = make(copy.deepcopy(model), groups='size')
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed.groups.tolist() == GROUPS and resumed.alpha == 0.8
    with pytest.raises(ValueError, match='each of the 5 classes'):
        optimizer.set_groups([0, 1])
    with pytest.raises(ValueError, match='>= 0'):
        optimizer.set_groups([0, 1, -1, 0, 0])


@pytest.mark.parametrize('options', [{}, {'batchnorm': 'stacked'}], ids=str)
def test_resume_continues_bit_equal(options):
    model, x, y = problem()
    optimizer = make(model, **options)
    optimizer.set_penalty(penalty_of(model).quadratic(), alpha=0.9)

    def train(model, optimizer, steps):
        for i in steps:
            batch = torch.randperm(10, generator=torch.Generator().manual_seed(i))[:6]
            optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x[batch], y[batch]))

    train(model, optimizer, range(3))
    weights, state = copy.deepcopy(model.state_dict()), copy.deepcopy(optimizer.state_dict())
    train(model, optimizer, range(3, 6))
    other = Net('batch').double()
    other.load_state_dict(weights)
    resumed = make(other, **options)
    resumed.load_state_dict(state)
    resumed.set_penalty(penalty_of(other).quadratic())
    train(other, resumed, range(3, 6))
    assert all(torch.equal(a, b) for a, b in zip(model.state_dict().values(), other.state_dict().values()))


def test_cheaper_batchnorm_modes_point_the_same_way_as_exact_in_the_order_of_their_cost():
    model, x, y = problem(batch=30)
    y = torch.tensor([0, 2, 3]).repeat(10)
    base = copy.deepcopy(model)
    F.cross_entropy(base(x), y).backward()
    effects = {}
    for mode in ('batch', 'exact_ascent', 'stacked'):
        own = copy.deepcopy(model)
        make(own, batchnorm=mode).compute_grads(BatchClosure(own, nn.CrossEntropyLoss(), x, y))
        effects[mode] = torch.cat([(a - b).flatten() for a, b in zip(gradients(own), gradients(base))])
    cosine = {mode: float(F.cosine_similarity(effects[mode], effects['batch'], dim=0)) for mode in effects}
    assert cosine['exact_ascent'] > 0.9 and cosine['stacked'] > 0.5, cosine


def test_overflow_of_a_group_spoils_the_final_gradient():
    model, x, y = problem('group')
    x[1] = float('inf')
    make(model).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    assert not all(torch.isfinite(g).all() for g in gradients(model))


@pytest.mark.parametrize('options', [{}, {'batchnorm': 'stacked'}], ids=str)
def test_loss_scale_does_not_change_the_step(options):
    model, x, y = problem()
    model = model.float()
    x = x.float()
    other = copy.deepcopy(model)
    penalty, other_penalty = penalty_of(model, torch.float32).quadratic(), penalty_of(other, torch.float32).quadratic()
    plain, scaled = make(model, **options), make(other, **options)
    plain.set_penalty(penalty, 0.8)
    scaled.set_penalty(other_penalty, 0.8)
    plain.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    closure = BatchClosure(other, nn.CrossEntropyLoss(), x, y)
    backward = closure.backward
    closure.backward = lambda loss, retain_graph=False: backward(loss * 1024, retain_graph)
    scaled.compute_grads(closure, grad_scale=1024.0)
    torch.testing.assert_close([g / 1024 for g in gradients(other)], gradients(model), rtol=1e-4, atol=1e-6)


def test_groups_may_be_a_mapping_from_the_classes():
    model, _, _ = problem()
    assert make(model, groups=dict(enumerate(GROUPS))).groups.tolist() == GROUPS


@pytest.mark.parametrize('options, message', [
    ({'groups': {0: 1}}, 'each of the classes 0 to 4'),
    ({'groups': [True, False, True, True, False]}, 'torch.bool'),
    ({'variant': 'released'}, "gsa_released.py.*Use variant='paper'"),
    ({'batchnorm': 'group'}, "use batchnorm='stacked'"),
    ({'batchnorm': 'frozen'}, "use batchnorm='stacked'"),
], ids=str)
def test_options_without_effect_or_meaning_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(problem()[0], **options)


def test_what_cannot_work_is_refused():
    model, x, y = problem()
    with pytest.raises(TypeError, match='class_counts is missing'):
        timm.optim.create_optimizer_v2(model, 'gsa', lr=0.1)
    with pytest.raises(TypeError, match='BatchClosure'):
        make(model).step(lambda: F.cross_entropy(model(x), y))
    with pytest.raises(ValueError, match='batchnorm must be one of'):
        make(model, batchnorm='exact')
    with pytest.raises(ValueError, match='does not step'):
        make(model).set_penalty(penalty_of(copy.deepcopy(model)).quadratic())
    with pytest.raises(TypeError, match=r'gradients\(\)'):
        make(model).set_penalty(penalty_of(model))
    with pytest.raises(ValueError, match='Z must be'):
        make(model, Z=-1.0)

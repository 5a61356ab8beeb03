import copy
import math
from contextlib import nullcontext
from functools import partial

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


def test_stacked_first_pass_equals_exact_gradients_without_coupling():
    """With BatchNorm's backward out of the way (evaluation mode), slices with weights of their own are exact."""
    from timm_lt.optim.approximate import stacked_gradients
    model, x, y = problem()
    model.eval()
    group = torch.tensor(GROUPS)[y]
    params = list(model.parameters())
    ones = [torch.ones(len(y))]
    rows, mean = stacked_gradients(
        BatchClosure(model, nn.CrossEntropyLoss(), x, y), params, [group], ones, [0, 1, 2], first=True, kept=[])
    losses = F.cross_entropy(model(x), y, reduction='none')
    torch.testing.assert_close(mean, losses.mean().detach())
    for k, row in enumerate(rows):
        expected = torch.autograd.grad(losses[group == k].sum() / len(y), params, retain_graph=True)
        torch.testing.assert_close(row, list(expected))


@pytest.mark.parametrize('layer', [
    nn.Conv2d(4, 6, 3, stride=2, padding=1, groups=2), nn.Conv2d(4, 6, 3, padding='same', bias=False),
    nn.Conv2d(4, 6, 3, padding=1, padding_mode='reflect'), nn.Conv2d(4, 6, 1), nn.Conv2d(4, 6, 1, stride=2, bias=False),
    nn.Linear(5, 3), nn.GroupNorm(2, 4)], ids=str)
@pytest.mark.parametrize('autocast', [False, True], ids=['full', 'autocast'])
@pytest.mark.parametrize('first', [True, False])
def test_stacked_layers_give_every_slice_its_own_weights(layer, first, autocast):
    from timm_lt.optim.approximate import stacked_forward
    dtype, context = torch.float64, nullcontext
    if autocast:
        dtype, context = torch.float32, partial(torch.autocast, 'cpu', torch.bfloat16)
    layer = copy.deepcopy(layer).to(dtype)
    x = torch.randn(6, 4, 5, 5).to(dtype).requires_grad_()
    own = {id(p): torch.randn_like(p) for p in layer.parameters()}
    weights = [{k: (w if first else torch.randn_like(w)).clone().requires_grad_() for k, w in own.items()}
               for _ in range(2)]
    close = partial(torch.testing.assert_close, **({'rtol': 2e-2, 'atol': 0.2} if autocast else {}))
    with stacked_forward(layer, [2, 4], weights, first, {}), context():
        y = layer(x)
    g = torch.randn_like(y)
    y.backward(g)
    expected = []
    for rows, w in ((slice(0, 2), weights[0]), (slice(2, 6), weights[1])):
        part = x.detach()[rows].clone().requires_grad_()
        alone = {n: w[id(p)].detach().clone().requires_grad_() for n, p in layer.named_parameters()}
        with context():
            output = torch.func.functional_call(layer, alone, (part,))
        close(y[rows], output)
        output.backward(g[rows])
        close(x.grad[rows], part.grad)
        expected.append([alone[n].grad for n, _ in layer.named_parameters()])
    given = [[w[id(p)].grad for p in layer.parameters()] for w in weights]
    if not first:  # the sum over the slices is asked for
        given, expected = ([[sum(g for g in column if g is not None) for column in zip(*rows)]]
                           for rows in (given, expected))
    assert all(g.dtype == dtype for row in given for g in row)
    close(given, expected)


def centred(g, hat, std, over):
    """Gradient of BatchNorm's input, the two means of the formula taken over the samples ``over``."""
    alone, times = g[over].mean((0, 2, 3), keepdim=True), (g * hat)[over].mean((0, 2, 3), keepdim=True)
    return (g - alone - hat * times) / std


def test_stacked_batchnorm_keeps_groups_apart_on_the_first_pass_and_moves_statistics_on_the_second():
    from timm_lt.optim.approximate import stacked_forward
    m = nn.BatchNorm2d(3).double()
    once = copy.deepcopy(m)
    kept, rows = {}, (slice(0, 2), slice(2, 6))

    def weights(same):
        own = [{id(p): torch.randn(3).double().requires_grad_() for p in m.parameters()} for _ in rows]
        return [own[0], {k: w.detach().clone().requires_grad_() for k, w in own[0].items()}] if same else own

    def moments(x):
        return x.mean((0, 2, 3), keepdim=True), x.var((0, 2, 3), correction=0, keepdim=True)

    x = torch.randn(6, 3, 2, 2).double()
    g = torch.randn_like(x)
    mean, var = moments(x)
    for first in (True, False):
        own = weights(same=first)
        mine = (x if first else x + 0.1 * torch.randn_like(x)).requires_grad_()
        with stacked_forward(m, [2, 4], own, first, kept):
            y = m(mine)
        y.backward(g)
        if first:
            once(x)
            torch.testing.assert_close(m.state_dict(), once.state_dict())
        hat, gw, std = torch.zeros_like(x), torch.zeros_like(x), torch.zeros_like(x)
        for r, w in zip(rows, own):
            m_0, v_0 = moments(x[r])
            m_k, v_k = moments(mine.detach()[r])
            std[r] = (var + v_k - v_0 + m.eps).sqrt()
            hat[r] = (mine.detach()[r] - (mean + m_k - m_0)) / std[r]
            scale, shift = (w[id(p)].detach().view(1, 3, 1, 1) for p in (m.weight, m.bias))
            gw[r] = g[r] * scale
            torch.testing.assert_close(y[r], hat[r] * scale + shift)
            torch.testing.assert_close(w[id(m.weight)].grad, (g * hat)[r].sum((0, 2, 3)))
            torch.testing.assert_close(w[id(m.bias)].grad, g[r].sum((0, 2, 3)))
        for r in rows:
            expected = centred(gw, hat, std, over=r if first else slice(None))[r]
            torch.testing.assert_close(mine.grad[r], expected)
        x.grad = None
        x = x.detach()


def test_stacked_gradient_without_perturbation_is_the_plain_one():
    from timm_lt.optim.approximate import stacked_gradients
    model, x, y = problem()
    params, group, ones, kept = list(model.parameters()), torch.tensor(GROUPS)[y], [torch.ones(len(y))], []
    closure = BatchClosure(model, nn.CrossEntropyLoss(), x, y)
    stacked_gradients(closure, params, [group], ones, [0, 1, 2], first=True, kept=kept)
    nothing = {k: {} for k in range(3)}
    (total,), _ = stacked_gradients(
        closure, params, [group], ones, [0, 1, 2], first=False, kept=kept, eps=nothing)
    plain = torch.autograd.grad(F.cross_entropy(model(x), y), params)
    torch.testing.assert_close(total, list(plain))


@pytest.mark.parametrize('cut', [[10], [4, 6]], ids=['batch', 'window'])
def test_exact_ascent_has_the_exact_gradients_of_the_groups(cut):
    from timm_lt.optim.approximate import exact_gradients
    model, x, y = problem()
    params, kept, xs, ys = list(model.parameters()), [], list(x.split(cut)), list(y.split(cut))
    group = [torch.tensor(GROUPS)[part] for part in ys]
    closure, ones = BatchClosure(model, nn.CrossEntropyLoss(), xs, ys), [torch.ones(n) for n in cut]
    rows, mean = exact_gradients(closure, params, group, ones, [0, 1, 2], kept)
    losses = torch.cat([F.cross_entropy(model(a), b, reduction='none') for a, b in zip(xs, ys)])
    torch.testing.assert_close(mean, losses.mean().detach())
    for k, row in enumerate(rows):
        expected = torch.autograd.grad(losses[torch.cat(group) == k].sum() / len(y), params, retain_graph=True)
        torch.testing.assert_close(row, list(expected))


@pytest.mark.parametrize('layer', [nn.Linear(3, 3), nn.BatchNorm1d(3)], ids=['linear', 'norm'])
def test_stacked_refuses_layers_that_see_other_rows_than_the_batch(layer):
    from timm_lt.optim.approximate import stacked_forward
    weights = {id(p): p for p in layer.parameters()}
    with stacked_forward(layer, [2, 4], [weights] * 2, True, {}), pytest.raises(ValueError, match='12 rows'):
        layer(torch.randn(12, 3))


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

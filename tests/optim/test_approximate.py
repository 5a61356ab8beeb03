"""Passes with a slice of the batch for each group, layer by layer and as a whole, against plain references."""

import copy
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from gsa_cases import GROUPS, problem

from timm_lt.optim import BatchClosure
from timm_lt.optim.approximate import exact_gradients, stacked_forward, stacked_gradients


def test_stacked_first_pass_equals_exact_gradients_without_coupling():
    """With BatchNorm's backward out of the way (evaluation mode), slices with weights of their own are exact."""
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
    weights = {id(p): p for p in layer.parameters()}
    with stacked_forward(layer, [2, 4], [weights] * 2, True, {}), pytest.raises(ValueError, match='12 rows'):
        layer(torch.randn(12, 3))

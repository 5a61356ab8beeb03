"""The checks that timm makes of each of its optimizers, for every sharpness-aware one, bare and with ``lookahead_``.

Class-aware methods have no plain closure: where timm's checks use one, they get the same problem as a ``BatchClosure``.
"""

from copy import deepcopy

import pytest
import timm
import torch
import torch.nn as nn
from sam_reference import CLASS_AWARE, NAMES
from timm.optim import create_optimizer_v2, list_optimizers

import timm_lt
from timm_lt.optim import BatchClosure

BOTH = [*NAMES, *(f'lookahead_{name}' for name in NAMES)]
GENERIC = [n for n in BOTH if n.split('_')[-1] not in CLASS_AWARE]


def create(model_or_params, name, **options):
    if name.split('_')[-1] in CLASS_AWARE:
        options['class_counts'] = [30, 3]
    return create_optimizer_v2(model_or_params, name, **options)


class Residual(nn.Module):
    """``weight x + bias``, whose squared norm is the loss; each of its two samples sees half."""

    reduction = 'mean'

    def __init__(self, weight, bias):
        super().__init__()
        self.weight, self.bias = weight, bias

    def forward(self, x):
        return (x @ self.weight.t() + self.bias).pow(2).sum(1, keepdim=True)


class FirstColumn(nn.Module):
    reduction = 'mean'

    def forward(self, output, target):
        return output[:, 0].mean() if self.reduction == 'mean' else output[:, 0]


def make_closure(name, optimizer, weight, bias, x):
    if name.split('_')[-1] in CLASS_AWARE:
        return BatchClosure(Residual(weight, bias), FirstColumn(), torch.stack([x, x]), torch.tensor([0, 1]))

    def closure():
        optimizer.zero_grad()
        loss = (weight.mv(x) + bias).pow(2).sum()
        loss.backward()
        return loss

    return closure


def parameters(contiguous=True):
    if contiguous:
        return nn.Parameter(torch.randn(10, 5)), nn.Parameter(torch.randn(10)), torch.randn(5)
    return nn.Parameter(torch.randn(10, 5, 2)[..., 0]), nn.Parameter(torch.randn(10, 2)[..., 0]), torch.randn(5)


CONSTRUCTORS = {
    'list': lambda w, b, name: create([w, b], name, lr=1e-3),
    'groups': lambda w, b, name: create([{'params': [w]}, {'params': [b], 'lr': 1e-2}], name, lr=1e-3),
    'one group': lambda w, b, name: create([{'params': b, 'lr': 1e-2}], name, lr=1e-3),
    'default lr': lambda w, b, name: create([{'params': b}], name),
    'weight decay': lambda w, b, name: create([w, b], name, lr=1e-3, weight_decay=0.1),
}


@pytest.mark.parametrize('how', CONSTRUCTORS)
@pytest.mark.parametrize('name', BOTH)
def test_loss_falls_for_every_form_of_parameters(name, how):
    weight, bias, x = parameters(contiguous=how != 'list')
    optimizer = CONSTRUCTORS[how](weight, bias, name)
    assert repr(optimizer)
    closure = make_closure(name, optimizer, weight, bias, x)
    first = closure().item()
    for _ in range(20):
        optimizer.step(closure)
    assert closure().item() < first


@pytest.mark.parametrize('how', ['list', 'groups'])
@pytest.mark.parametrize('name', BOTH)
def test_state_dict_round_trip_continues_alike(name, how):
    weight, bias, x = parameters()
    optimizer = CONSTRUCTORS[how](weight, bias, name)
    closure = make_closure(name, optimizer, weight, bias, x)
    for _ in range(10):
        optimizer.step(closure)
    weight_c, bias_c = nn.Parameter(weight.detach().clone()), nn.Parameter(bias.detach().clone())
    optimizer_c = CONSTRUCTORS[how](weight_c, bias_c, name)
    closure_c = make_closure(name, optimizer_c, weight_c, bias_c, x)
    saved = deepcopy(optimizer.state_dict())
    optimizer_c.load_state_dict(saved)
    for _ in range(10):
        optimizer.step(closure)
        optimizer_c.step(closure_c)
        assert torch.equal(weight, weight_c) and torch.equal(bias, bias_c)
    a, b = optimizer.state_dict(), optimizer_c.state_dict()
    assert a['param_groups'] == b['param_groups'] and a['sharpness_aware'] == b['sharpness_aware']
    optimizer_c.param_groups.extend(optimizer_c.param_groups)
    assert a['param_groups'][-1] == optimizer_c.state_dict()['param_groups'][-1]

    def public(o):
        return {k for k in o.__dict__ if not k.startswith('_')}

    assert public(optimizer) == public(deepcopy(optimizer))


@pytest.mark.parametrize('name', NAMES)  # Lookahead moves back by design
def test_model_loss_falls_at_every_step_without_a_closure(name):
    weight = torch.tensor([[-0.2109, -0.4976], [-0.1413, -0.3420], [-0.2524, 0.6976]])
    model = nn.Sequential(nn.Linear(2, 3), nn.Sigmoid(), nn.Linear(3, 1), nn.Sigmoid())
    model[0].load_state_dict({'weight': weight, 'bias': torch.tensor([-0.1085, -0.2979, 0.6892])})
    x = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5, 0.6]).reshape(3, 2)
    optimizer = create(model, name, lr=1e-3, allow_plain=True)
    previous = float('inf')
    for _ in range(20):
        optimizer.zero_grad()
        loss = model(x).sum()
        loss.backward()
        assert loss.item() < previous
        previous = loss.item()
        optimizer.step()


@pytest.mark.parametrize('name', GENERIC)
def test_rosenbrock_comes_closer_to_its_minimum(name):
    params = nn.Parameter(torch.tensor([1.5, 1.5]))
    optimizer = create([params], name, lr=1e-2, base='adamw')
    solution = torch.ones(2)
    initial = params.detach().dist(solution)

    def closure(i):
        optimizer.zero_grad()
        x, y = params
        loss = (1 - x) ** 2 + 100 * (y - x ** 2) ** 2
        loss.backward()
        with torch.no_grad():  # cyclic coordinate descent
            params.grad[1 - i % 2] = 0
        return loss

    for i in range(600):
        optimizer.step(lambda i=i: closure(i))
    assert params.detach().dist(solution) <= initial


@pytest.mark.parametrize('name', BOTH)
def test_weight_decay_groups_and_layer_decay_are_timms(name):
    model = timm.create_model('test_vit', num_classes=2)
    ours = create(model, name, lr=0.1, weight_decay=0.05, layer_decay=0.7)
    theirs = create_optimizer_v2(model, 'momentum', lr=0.1, weight_decay=0.05, layer_decay=0.7)
    assert len(ours.param_groups) == len(theirs.param_groups) > 4
    for a, b in zip(ours.param_groups, theirs.param_groups):
        assert [id(p) for p in a['params']] == [id(p) for p in b['params']]
        assert (a['weight_decay'], a['lr'], a['lr_scale']) == (b['weight_decay'], b['lr'], b['lr_scale'])
    plain = create(model, name, lr=0.1, weight_decay=0.05)
    assert [g['weight_decay'] for g in plain.param_groups] == [0.0, 0.05]


@pytest.mark.parametrize('base', ['momentum', 'sgd', 'adamw', 'lamb', 'rmsprop', 'adopt', 'lion', 'lookahead_adamw'])
@pytest.mark.parametrize('name', ['sam', 'imbsam'])
def test_every_kind_of_base_takes_the_step(name, base):
    weight, bias, x = parameters()
    optimizer = create([weight, bias], name, lr=1e-3, base=base, momentum=0.8, eps=1e-6, betas=(0.9, 0.95))
    closure = make_closure(name, optimizer, weight, bias, x)
    first = closure().item()
    for _ in range(10):
        optimizer.step(closure)
    assert closure().item() < first


def test_names_stand_in_timms_list_with_descriptions():
    listed = dict(list_optimizers(with_description=True))
    for name in NAMES:
        assert len(listed[name]) > 20 and name in timm_lt.list_optimizers()
        assert issubclass(timm.optim.get_optimizer_class(name, bind_defaults=False), torch.optim.Optimizer)

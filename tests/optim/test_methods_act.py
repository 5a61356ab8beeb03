"""A method that is named acts, or says in one warning which option keeps it from acting."""

import warnings

import pytest
import timm
import torch
import torch.nn as nn
from sam_reference import COUNTS, OWN, make_batch, make_model

from timm_lt.optim import BatchClosure, optimizer_step, set_epoch

CE = nn.CrossEntropyLoss()


def make(model, name, params=None, **options):
    if name not in ('sam', 'asam'):
        options = {'class_counts': COUNTS, **options}
    return timm.optim.create_optimizer_v2(
        model.parameters() if params is None else params, name, lr=0.1, **{**OWN.get(name, {}), **options})


def run(name, epochs=4, steps=3, **options):
    """Messages of a short run, from the construction on."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter('always')
        model = make_model('group')
        optimizer = make(model, name, **options)
        for epoch in range(epochs):
            set_epoch(optimizer, epoch, epochs)
            for step in range(steps):
                optimizer_step(optimizer, BatchClosure(model, CE, *make_batch(seed=step)))
    return [str(w.message) for w in caught]


@pytest.mark.parametrize('name, options, word', [
    ('sam', {'rho': 0}, 'rho=0'), ('asam', {'rho': 0.0}, 'rho=0'), ('imbsam', {'rho': 0}, 'rho=0'),
    ('focalsam', {'rho': 0}, 'rho=0'), ('focalsam', {'sharpness': 0}, 'sharpness=0'),
    ('ssesam', {'rho_head': 0, 'rho_tail': 0}, 'rho_head=0, rho_tail=0'),
    ('ssesam', {'stage': 0, 'eta': 1}, 'eta=1'), ('ssesam', {'eta': 1}, 'eta=1 leaves no tail'),
    ('imbsam', {'eta': 2}, 'eta=2 leaves no tail class, because the smallest has 2'),
    ('imbsam', {'eta': 91}, 'eta=91 leaves no head class'),
    ('ccsam', {'scale': 0}, 'scale=0'), ('ccsam', {'perturbed_share': 0}, 'perturbed_share=0'),
    ('gsa', {'Z': 0}, 'Z=0'), ('gsa', {'num_groups': 1}, 'num_groups'), ('gsa', {'groups': [1] * 6}, 'groups'),
    ('sam', {'start_epoch': 4}, 'start_epoch=4'), ('ccsam', {'start_epoch': 50}, 'start_epoch=50'),
    ('sam', {'every': 12}, 'every=12 perturbs 1 of the 12 steps'),
    ('gsa', {'every': 100, 'start_epoch': 1}, 'every=100 perturbs 0 of the 12 steps'),
], ids=str)
def test_options_under_which_a_method_never_acts_are_told_once(name, options, word):
    told = [m for m in run(name, **options) if word in m]
    assert len(told) == 1, told


@pytest.mark.parametrize('name, options', [
    ('sam', {}), ('asam', {}), ('imbsam', {}), ('ssesam', {}), ('focalsam', {}), ('ccsam', {}), ('gsa', {}),
    ('sam', {'start_epoch': 3}), ('sam', {'every': 6}), ('ssesam', {'stage': 0}), ('imbsam', {'layers': 'fc*'}),
    ('imbsam', {'variant': 'released', 'rho': 0})], ids=str)
def test_methods_that_act_say_nothing(name, options):
    assert run(name, **options) == []


def test_steps_of_an_epoch_are_told_or_counted():
    for steps in (None, 3):
        optimizer = make(make_model('group'), 'sam', every=1000)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter('always')
            set_epoch(optimizer, 0, 1, steps_per_epoch=steps)
        assert any('every=1000' in str(w.message) for w in caught) is (steps is not None)


def test_gkp_alone_is_a_method_that_acts():
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        model = make_model('group')
        optimizer = make(model, 'gsa', Z=0)
        set_epoch(optimizer, 0, 2)
        optimizer.set_penalty(None, alpha=0.9)
        optimizer.step(BatchClosure(model, CE, *make_batch()))


# Parameters that come later


class Watch:
    """Names of the parameters that some forward pass saw at other values than the first."""

    def __init__(self, model):
        self.values, self.model = [], model
        model.register_forward_pre_hook(self)

    def __call__(self, module, args):
        self.values.append({n: p.detach().clone() for n, p in self.model.named_parameters()})

    def moved(self):
        first, *rest = self.values
        return {n for n, p in first.items() if any(not torch.equal(p, other[n]) for other in rest)}


def with_adapter(model):
    model.conv = nn.Sequential(model.conv, nn.Conv2d(4, 4, 1).double())
    return model.conv[1]


def new_head(model):
    model.fc = nn.Linear(4, len(COUNTS)).double()
    return model.fc


def moved_by_a_step(model, optimizer):
    watch = Watch(model)
    optimizer.compute_grads(BatchClosure(model, CE, *make_batch()))
    return watch.moved()


@pytest.mark.parametrize('name', ['sam', 'imbsam', 'ssesam', 'focalsam', 'gsa'])
@pytest.mark.parametrize('layers, change, expected', [
    ('classifier', new_head, {'fc.weight', 'fc.bias'}), ('fc*', new_head, {'fc.weight', 'fc.bias'}),
    ('conv*', with_adapter, {'conv.1.weight', 'conv.1.bias', 'conv.0.weight', 'conv.0.bias'}),
    (None, with_adapter, {'conv.1.weight', 'conv.1.bias', 'conv.0.weight', 'conv.0.bias', 'fc.weight', 'fc.bias',
                          'norm.weight', 'norm.bias'})], ids=str)
def test_parameters_added_later_are_perturbed(name, layers, change, expected):
    model = make_model('group')
    optimizer = make(model, name, layers=layers)
    optimizer.step(BatchClosure(model, CE, *make_batch()))
    added = change(model)
    optimizer.add_param_group({'params': list(added.parameters())})
    assert moved_by_a_step(model, optimizer) == expected


def test_parameters_put_into_a_group_by_hand_and_unfrozen_ones_are_perturbed():
    model = make_model('group')
    model.conv.requires_grad_(False)
    optimizer = make(model, 'sam', layers='conv*')
    optimizer.step(BatchClosure(model, CE, *make_batch()))
    model.conv.requires_grad_(True)
    optimizer.param_groups[0]['params'].extend(with_adapter(model).parameters())
    assert moved_by_a_step(model, optimizer) == {'conv.0.weight', 'conv.0.bias', 'conv.1.weight', 'conv.1.bias'}


def test_closed_form_of_ccsam_follows_a_new_classifier():
    model, reference = make_model('group'), make_model('group')
    optimizer = make(model, 'ccsam', scale=0.1)
    optimizer.step(BatchClosure(model, CE, *make_batch()))
    reference.load_state_dict(model.state_dict())
    for m in (model, reference):
        torch.manual_seed(7)
        new_head(m)
    optimizer.add_param_group({'params': list(model.fc.parameters())})
    expected = make(reference, 'ccsam', scale=0.1)
    for m, o in ((model, optimizer), (reference, expected)):
        o.compute_grads(BatchClosure(m, CE, *make_batch(seed=1)))
    for a, b in zip(model.parameters(), reference.parameters()):
        torch.testing.assert_close(a.grad, b.grad)


@pytest.mark.parametrize('name', ['sam', 'gsa', 'ccsam'])
def test_layers_that_the_optimizer_does_not_step_are_told(name):
    model = make_model('group')
    optimizer = make(model, name, layers='classifier')
    optimizer.step(BatchClosure(model, CE, *make_batch()))
    new_head(model)  # and forgotten
    with pytest.warns(UserWarning, match="layers='classifier'"):
        optimizer.step(BatchClosure(model, CE, *make_batch()))
    with pytest.warns(UserWarning, match='exclude_norm_bias=True'):
        norm = make(model, 'sam', model.norm.parameters(), exclude_norm_bias=True)
        norm.step(BatchClosure(model, CE, *make_batch()))

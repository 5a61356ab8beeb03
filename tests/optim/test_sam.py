"""Sharpness-aware optimizers against plain float64 references, with every kind of batch, loss and module."""

import copy
from collections import namedtuple

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from sam_reference import (
    CLASS_AWARE,
    COUNTS,
    ETA,
    NAMES,
    OWN,
    assert_bit_equal,
    flat,
    make_batch,
    make_model,
    make_optimizer,
    reference_gradient,
    state_of,
)

import timm_lt
from timm_lt.losses import LongTailLoss
from timm_lt.optim import BatchClosure, optimizer_step


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', NAMES)
def test_optimizer_matches_its_plain_reference_over_many_steps(name, norm):
    model = make_model(norm)
    reference = copy.deepcopy(model)
    optimizer = make_optimizer(model, name)
    base = torch.optim.SGD(reference.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(10):
        optimizer.set_epoch(step, 10)
        x, y = make_batch(seed=step)
        loss = optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        gradients = reference_gradient(reference, name, x, y, OWN[name], step)
        expected_loss = F.cross_entropy(reference(x), y)  # the one plain forward that moves the buffers
        for k, p in reference.named_parameters():
            p.grad = gradients[k]
        base.step()
        torch.testing.assert_close(loss, expected_loss.detach(), rtol=1e-12, atol=1e-12)
        for (k, a), b in zip(model.state_dict().items(), reference.state_dict().values()):
            torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-11, msg=lambda m, k=k: f'{k}: {m}')  # noqa: B023


@pytest.mark.parametrize('labels', [[0, 1, 2], [3, 4, 5], [5]], ids=['head only', 'tail only', 'one class'])
@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', CLASS_AWARE)
def test_batch_without_head_or_tail_matches_the_reference(name, norm, labels):
    model = make_model(norm)
    x, y = make_batch(labels=labels)
    expected = reference_gradient(model, name, x, y, OWN[name])
    make_optimizer(model, name).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    for k, p in model.named_parameters():
        assert torch.isfinite(p.grad).all()
        torch.testing.assert_close(p.grad, expected[k], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', [*NAMES, 'lookahead_sam', 'lookahead_imbsam'])
def test_optimizer_with_rho_zero_is_bit_equal_to_its_base(name, norm):
    model = make_model(norm, torch.float32)
    plain = copy.deepcopy(model)
    own = {'rho_head': 0.0, 'rho_tail': 0.0} if name == 'ssesam' else {'rho': 0.0}
    optimizer = make_optimizer(model, name, base='adamw', **own)
    base = timm.optim.create_optimizer_v2(
        list(plain.parameters()), name.replace(name.split('_')[-1], 'adamw'), lr=0.1, weight_decay=1e-3)
    for step in range(7):
        x, y = make_batch(seed=step, dtype=torch.float32)
        optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        base.zero_grad()
        F.cross_entropy(plain(x), y).backward()
        base.step()
    assert_bit_equal(model.state_dict(), plain.state_dict())


def test_imbsam_variants_weigh_the_parts_as_published():
    x, y = make_batch()
    tail = torch.tensor(COUNTS)[y] < ETA

    def gradient(variant):
        model = make_model('group')
        optimizer = make_optimizer(model, 'imbsam', variant=variant, rho=1e-12)
        optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        return flat(p.grad for p in model.parameters())

    def expected(head_weight, tail_weight):
        model = make_model('group')
        values = F.cross_entropy(model(x), y, reduction='none')
        (head_weight * values[~tail].sum() + tail_weight * values[tail].sum()).backward()
        return flat(p.grad for p in model.parameters())

    for variant, weights in {
            'paper': (1 / 12, 1 / 12), 'released': (1 / 12, 2 / 12),
            'group_mean': (1 / int((~tail).sum()), 1 / int(tail.sum()))}.items():
        torch.testing.assert_close(gradient(variant), expected(*weights), rtol=1e-9, atol=1e-11)


def test_sam_accepts_a_plain_closure_and_gives_the_same_as_a_batch_closure():
    x, y = make_batch()
    states = []
    for plain in (False, True):
        model = make_model('group')
        optimizer = make_optimizer(model, 'sam')

        def closure(model=model, optimizer=optimizer):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure if plain else BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        states.append(model.state_dict())
    assert_bit_equal(*states)


class Counting(nn.Module):
    """Counts its training forwards, once in place and once by a new tensor."""

    def __init__(self):
        super().__init__()
        self.register_buffer('in_place', torch.zeros(()))
        self.register_buffer('anew', torch.zeros(()))

    def forward(self, x):
        if self.training:
            self.in_place += 1
            self.anew = self.anew + x.detach().abs().mean().float()
        return x


@pytest.mark.parametrize('norm', ['batch', 'group', 'counting', 'spectral'])
@pytest.mark.parametrize('name', NAMES)
def test_buffers_after_a_step_are_those_of_one_plain_forward(name, norm):
    def build():
        model = make_model('group' if norm != 'batch' else 'batch')
        if norm == 'counting':
            model.norm = nn.Sequential(model.norm, Counting().double())
        if norm == 'spectral':
            nn.utils.parametrizations.spectral_norm(model.fc)
        return model

    model, plain = build(), build()
    plain.load_state_dict(model.state_dict())
    x, y = make_batch()
    make_optimizer(model, name).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    plain(x)
    # the weights too are as they were: gradients are computed, no step was taken
    assert_bit_equal(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize('name', NAMES)
def test_weights_and_buffers_are_restored_when_a_pass_raises(name):
    model = make_model('batch')
    x, y = make_batch()
    optimizer = make_optimizer(model, name)
    optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    model(x)
    before, calls = state_of(model), []

    class Failing(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            calls.append(1)
            if len(calls) == 2:
                raise ArithmeticError('second pass')
            return super().forward(logits, target)

    plain = make_model('batch')
    plain.load_state_dict(before)
    plain(x)
    with pytest.raises(ArithmeticError):
        optimizer.step(BatchClosure(model, Failing(), x, y))
    assert_bit_equal(model.state_dict(), plain.state_dict())


def test_parameter_without_a_gradient_in_the_second_pass_is_restored():
    model = make_model('group')
    extra = nn.Parameter(torch.ones(3, dtype=torch.float64))
    optimizer = timm.optim.create_optimizer_v2([*model.parameters(), extra], 'sam', lr=0.0)
    x, y = make_batch()
    calls = []

    def closure():
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y) + (extra.sum() if not calls else 0)
        calls.append(1)
        loss.backward()
        return loss

    optimizer.step(closure)
    assert len(calls) == 2 and torch.equal(extra, torch.ones(3, dtype=torch.float64))


@pytest.mark.parametrize('name', NAMES)
def test_step_without_any_gradient_changes_nothing(name):
    model = make_model('group')
    for p in model.parameters():
        p.requires_grad_(False)
    optimizer = make_optimizer(model, name)
    before = state_of(model)
    x, y = make_batch()

    class Constant(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            return super().forward(logits, target) + torch.zeros((), requires_grad=True)

    optimizer.step(BatchClosure(model, Constant(), x, y))
    assert_bit_equal(model.state_dict(), before)


@pytest.mark.parametrize('name', NAMES)
def test_compiled_model_gives_the_same_with_one_graph_for_all_passes(name):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph.forward

    x, y = make_batch()
    states = []
    for compiled in (False, True):
        model = make_model('batch')
        optimizer = make_optimizer(model, name)
        called = torch.compile(model, backend=backend) if compiled else model
        for _ in range(2):
            optimizer.step(BatchClosure(called, nn.CrossEntropyLoss(), x, y))
        states.append(model.state_dict())
    assert len(graphs) == 1
    for key in states[0]:
        torch.testing.assert_close(states[0][key], states[1][key], rtol=1e-9, atol=1e-11)
    torch._dynamo.reset()


@pytest.mark.parametrize('criterion', ['plain', 'weighted'])
@pytest.mark.parametrize('name', ['momentum', *NAMES])
def test_micro_batches_equal_one_batch_uneven_ones_too(name, criterion):
    x, y = make_batch(13)
    weight = torch.tensor([0.2, 0.5, 1.0, 2.0, 3.0, 4.0], dtype=torch.float64) if criterion == 'weighted' else None
    results = []
    for sizes in ([13], [5, 5, 3], [1, 12]):
        model = make_model('group')
        optimizer = make_optimizer(model, name)
        closure = BatchClosure(model, nn.CrossEntropyLoss(weight), list(x.split(sizes)), list(y.split(sizes)))
        losses = [optimizer_step(optimizer, closure).loss]
        assert [len(z) for z in closure.output] == sizes
        torch.testing.assert_close(torch.cat(closure.output), make_model('group')(x).detach())
        losses += [optimizer_step(optimizer, closure).loss for _ in range(2)]
        results.append((flat(model.parameters()), torch.stack(losses)))
    for params, losses in results[1:]:
        torch.testing.assert_close(params, results[0][0], rtol=1e-9, atol=1e-11)
        torch.testing.assert_close(losses, results[0][1], rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize('mode', ['norm', 'value', 'agc'])
@pytest.mark.parametrize('name', ['momentum', 'lookahead_sam', *NAMES])
def test_clipping_acts_once_on_the_final_gradient(name, mode):
    x, y = make_batch()
    model = make_model('batch')
    expected = copy.deepcopy(model)
    optimizer = make_optimizer(model, name)
    optimizer_step(optimizer, BatchClosure(model, nn.CrossEntropyLoss(), x, y), clip_grad=0.01, clip_mode=mode)

    own = name.split('_')[-1]
    if own == 'momentum':
        F.cross_entropy(expected(x), y).backward()
    else:
        for k, g in reference_gradient(expected, own, x, y, OWN[own]).items():
            expected.get_parameter(k).grad = g
    params = list(expected.parameters())
    timm.utils.dispatch_clip_grad(params[:-2] if mode == 'agc' else params, 0.01, mode)
    torch.optim.SGD(params, lr=0.1, momentum=0.9, weight_decay=1e-3).step()
    torch.testing.assert_close(flat(model.parameters()), flat(params), rtol=1e-9, atol=1e-12)
    assert all(p.grad is None for p in model.parameters())


def test_soft_targets_take_their_class_from_the_labels():
    x, y = make_batch()
    soft = 0.7 * F.one_hot(y, 6).double() + 0.3 * F.one_hot(y.flip(0), 6).double()
    labels = y.flip(0)
    tail = (torch.tensor(COUNTS)[labels] < ETA).double()
    model = make_model('group')
    optimizer = make_optimizer(model, 'imbsam', rho=1e-12, variant='released')
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, soft, labels=labels))
    expected = make_model('group')
    (F.cross_entropy(expected(x), soft, reduction='none') * (1 + tail)).mean().backward()
    torch.testing.assert_close(
        flat(p.grad for p in model.parameters()), flat(p.grad for p in expected.parameters()), rtol=1e-9, atol=1e-11)


class Gathering(LongTailLoss):
    """A loss with statistics: the number of samples seen, staged until committed."""

    def __init__(self):
        super().__init__()
        self.staged, self.committed = [], 0

    def per_sample(self, logits, target):
        if self.statistics_mode == 'staged':
            self.staged += target.tolist()
        return F.cross_entropy(logits, target, reduction='none')

    def commit_statistics(self):
        self.committed += len(self.staged)
        self.staged = []


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', ['momentum', 'lookahead_ssesam', *NAMES])
def test_loss_statistics_count_every_sample_once_and_are_committed_after_the_step(name, norm):
    model, criterion = make_model(norm), Gathering()
    x, y = make_batch()
    optimizer = make_optimizer(model, name)
    closure = BatchClosure(model, criterion, list(x.split(5)), list(y.split(5)))
    if hasattr(optimizer, 'compute_grads'):
        optimizer.compute_grads(closure)
        assert sorted(criterion.staged) == sorted(y.tolist()) and criterion.committed == 0
        criterion.staged = []
    optimizer_step(optimizer, closure)
    assert criterion.committed == 12 and criterion.staged == []


class TwoInputs(nn.Module):
    """Takes a dict and a tuple, returns a named tuple."""

    Output = namedtuple('Output', 'features logits')

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(5, 6)

    def forward(self, data):
        features = torch.tanh(data['a'] + data['pair'][0] * data['pair'][1])
        return self.Output(features, self.fc(features))


class OnLogits(nn.CrossEntropyLoss):
    def forward(self, output, target):
        return super().forward(output.logits, target)


def test_nested_inputs_and_named_outputs_pass_in_parts():
    torch.manual_seed(0)
    model = TwoInputs().double()
    data = {'a': torch.randn(12, 5).double(), 'pair': (torch.randn(12, 5).double(), torch.randn(12, 5).double())}
    _, y = make_batch()
    logits = model(data).logits.detach()
    whole, parts = copy.deepcopy(model), copy.deepcopy(model)
    closure = BatchClosure(parts, OnLogits(), data, y)
    make_optimizer(parts, 'ssesam', rho_head=1e-9, rho_tail=1e-9).compute_grads(closure)
    F.cross_entropy(whole(data).logits, y).backward()
    torch.testing.assert_close(parts.fc.weight.grad, whole.fc.weight.grad, rtol=1e-6, atol=1e-8)
    torch.testing.assert_close(closure.output[0], logits)


@pytest.mark.parametrize('name', ['imbsam', 'ssesam'])
def test_a_loss_that_couples_samples_sees_the_whole_batch_in_every_pass(name):
    model = make_model('group')
    x, y = make_batch(12, labels=[0, 1, 3, 4])
    sizes = []
    model.register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    criterion = timm_lt.create_loss('lade', class_counts=COUNTS)
    optimizer = make_optimizer(model, name)
    optimizer_step(optimizer, BatchClosure(model, criterion, x, y))
    assert set(sizes) == {12}
    optimizer = make_optimizer(model, name, batchnorm='stacked')
    with pytest.raises(ValueError, match='depends on its whole batch'):
        optimizer_step(optimizer, BatchClosure(model, criterion, x, y))

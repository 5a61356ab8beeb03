"""Sharpness-aware optimizers against plain float64 references in the papers' letters."""

import copy
from collections import namedtuple

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

import timm_lt
from timm_lt.losses import LongTailLoss
from timm_lt.optim import BatchClosure, optimizer_step

COUNTS = [90, 40, 25, 9, 5, 2]
ETA = 20
NAMES = ('sam', 'asam', 'imbsam', 'ssesam', 'focalsam')
CLASS_AWARE = ('imbsam', 'ssesam', 'focalsam')
OWN = {
    'sam': {'rho': 0.1},
    'asam': {'rho': 0.7, 'eta': 0.01},
    'imbsam': {'rho': 0.1, 'eta': ETA},
    'ssesam': {'rho_head': 0.08, 'rho_tail': 0.15, 'eta': ETA},
    'focalsam': {'rho': 0.2, 'gamma': 2.0, 'sharpness': 0.7},
}


class ConvNet(nn.Module):
    def __init__(self, norm='batch'):
        super().__init__()
        self.conv = nn.Conv2d(2, 4, 3, padding=1)
        self.norm = nn.BatchNorm2d(4) if norm == 'batch' else nn.GroupNorm(2, 4)
        self.fc = nn.Linear(4, len(COUNTS))

    def forward(self, x):
        return self.fc(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))

    def get_classifier(self):
        return self.fc


def make_model(norm='batch', dtype=torch.float64):
    torch.manual_seed(1)
    return ConvNet(norm).to(dtype)


def make_batch(size=12, labels=None, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    target = torch.randint(len(COUNTS), (size,), generator=g)
    if labels is not None:
        target = torch.tensor(labels)[torch.randint(len(labels), (size,), generator=g)]
    return torch.randn(size, 2, 5, 5, generator=g, dtype=dtype), target


def make_optimizer(model, name, **options):
    own = name.split('_')[-1]
    if own in CLASS_AWARE:
        options.setdefault('class_counts', COUNTS)
    options = {'lr': 0.1, 'weight_decay': 1e-3, **OWN.get(own, {}), **options}
    return timm.optim.create_optimizer_v2(list(model.parameters()), name, **options)


def flat(tensors):
    return torch.cat([t.detach().flatten().double() for t in tensors])


def state_of(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_bit_equal(a, b):
    for key in a:
        assert torch.equal(a[key], b[key]), key


# The plain reference: every part's loss on the whole batch, one functional forward per gradient.


def reference_gradient(model, name, x, y, own, epoch=0, num_epochs=10):
    theta = {k: v.detach().clone() for k, v in model.named_parameters()}
    buffers = {k: v.clone() for k, v in model.named_buffers()}
    pi = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    n = torch.tensor(COUNTS)[y]
    head, tail = (n >= own.get('eta', ETA)).double(), (n < own.get('eta', ETA)).double()

    def gradient(weights, at):
        at = {k: v.clone().requires_grad_() for k, v in at.items()}
        z = functional_call(model, {**at, **{k: v.clone() for k, v in buffers.items()}}, (x,))
        loss = (F.cross_entropy(z, y, reduction='none') * weights).sum() / len(y)
        return dict(zip(at, torch.autograd.grad(loss, list(at.values()))))

    def step_up(g, rho):
        norm = flat(g.values()).norm()
        return {k: theta[k] + (rho * g[k] / norm if norm > 0 else 0 * g[k]) for k in g}

    ones = torch.ones_like(head)
    if name == 'asam':
        t = {k: v.abs() + own['eta'] for k, v in theta.items()}
        g = gradient(ones, theta)
        norm = flat([t[k] * g[k] for k in g]).norm()
        return gradient(ones, {k: theta[k] + own['rho'] * t[k] ** 2 * g[k] / norm for k in g})
    if name == 'focalsam':
        a = own['sharpness'] * (1 - pi[y]) ** own['gamma']
        parts = [(1 - a, 0), (a, own['rho'])]
    elif name == 'ssesam':
        parts = [(head, own['rho_head'] if epoch < 0.7 * num_epochs else 0), (tail, own['rho_tail'])]
    elif name == 'imbsam':
        parts = [(head, 0), (tail, own['rho'])]
    else:
        parts = [(ones, own['rho'])]
    total = {k: torch.zeros_like(v) for k, v in theta.items()}
    for w, rho in parts:
        g = gradient(w, theta)
        if rho:
            g = gradient(w, step_up(g, rho))
        total = {k: total[k] + g[k] for k in total}
    return total


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


# Weights and buffers


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


# Windows of micro-batches and clipping


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


# Options


def test_every_and_start_epoch_take_plain_steps_between():
    x, y = make_batch()
    for options, perturbed in ({'every': 3}, [0, 3, 6]), ({'start_epoch': 4}, [4, 5, 6]):
        model = make_model('group')
        optimizer = make_optimizer(model, 'sam', **options)
        forwards = []
        model.register_forward_hook(lambda *_, forwards=forwards: forwards.append(1))
        seen = []
        for step in range(7):
            optimizer.set_epoch(step, 7)
            optimizer.step(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
            if len(forwards) == 2:
                seen.append(step)
            forwards.clear()
        assert seen == perturbed


@pytest.mark.parametrize('options, moved', [
    ({'layers': 'classifier'}, {'fc.weight', 'fc.bias'}),
    ({'layers': ['conv*', 'norm.weight']}, {'conv.weight', 'conv.bias', 'norm.weight'}),
    ({'exclude_norm_bias': True}, {'conv.weight', 'fc.weight'}),
])
@pytest.mark.parametrize('name', ['sam', 'imbsam'])
def test_only_chosen_layers_are_perturbed_and_their_norm_is_rho(name, options, moved):
    x, y = make_batch()
    model = make_model('batch')
    before, seen = state_of(model), []

    class Watching(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            seen.append({k: (p - before[k]).detach() for k, p in model.named_parameters()})
            return super().forward(logits, target)

    optimizer = make_optimizer(model, name, **options)
    optimizer.compute_grads(BatchClosure(model, Watching(), x, y))
    assert {k for k, eps in seen[-1].items() if eps.abs().max() > 0} == moved
    torch.testing.assert_close(flat(seen[-1].values()).norm().item(), 0.1, rtol=1e-6, atol=0)


def test_rho_schedules_move_the_radius_over_the_epochs():
    x, y = make_batch()
    expected = {'constant': [0.2, 0.2, 0.2], 'linear': [0.2, 0.15, 0.1], 'cosine': [0.2, 0.15, 0.1]}
    for schedule, radii in expected.items():
        model = make_model('group')
        optimizer = make_optimizer(model, 'sam', rho=0.2, rho_schedule=schedule, rho_end=0.5, lr=0.0)
        for epoch, radius in enumerate(radii):
            optimizer.set_epoch(epoch, 3)
            before, seen = flat(model.parameters()), []

            class Watching(nn.CrossEntropyLoss):
                def forward(self, logits, target):
                    seen.append((flat(model.parameters()) - before).norm().item())  # noqa: B023
                    return super().forward(logits, target)

            optimizer.step(BatchClosure(model, Watching(), x, y))
            assert seen[1] == pytest.approx(radius)


def test_ssesam_switches_after_its_share_of_the_epochs():
    optimizer = make_optimizer(make_model(), 'ssesam', stage=0.7)
    switched = []
    for epoch in range(10):
        optimizer.set_epoch(epoch, 10)
        switched.append(optimizer.radii() == [0.0, 0.15])
    assert switched == [False] * 7 + [True] * 3


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


def forwards_of_a_step(name, norm, **options):
    model = make_model(norm)
    sizes, training = [], []
    model.norm.register_forward_hook(lambda m, i, o: sizes.append(len(o)) or training.append(m.training))
    x, y = make_batch()
    optimizer, closure = make_optimizer(model, name, **options), BatchClosure(model, nn.CrossEntropyLoss(), x, y)
    optimizer.compute_grads(closure)
    sizes.clear(), training.clear()  # the first step also tries whether samples meet in the network
    optimizer.compute_grads(closure)
    return sizes, training, int((torch.tensor(COUNTS)[y] < ETA).sum())


def test_batchnorm_modes_are_what_they_say():
    sizes, training, tail = forwards_of_a_step('imbsam', 'batch')
    assert (sizes, training) == ([12, 12], [True, True])
    sizes, training, tail = forwards_of_a_step('imbsam', 'batch', batchnorm='group')
    assert (sizes, training) == ([12, tail], [True, True])
    sizes, training, tail = forwards_of_a_step('imbsam', 'batch', batchnorm='frozen')
    assert (sizes, training) == ([12, tail], [True, False])
    sizes, training, tail = forwards_of_a_step('ssesam', 'batch', batchnorm='stacked')
    assert (sizes, training) == ([12, 12], [True, True])
    sizes, _, tail = forwards_of_a_step('imbsam', 'group')
    assert sizes == [12 - tail, tail, tail]
    sizes, _, tail = forwards_of_a_step('ssesam', 'group')
    assert sizes == [12 - tail, tail, 12 - tail, tail]


@pytest.mark.parametrize('mode', ['stacked', 'group', 'frozen'])
@pytest.mark.parametrize('name', ['imbsam', 'ssesam'])
def test_batchnorm_modes_are_exact_without_batchnorm_and_keep_buffers_with_it(name, mode):
    x, y = make_batch()
    model = make_model('group')
    make_optimizer(model, name, batchnorm=mode).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    expected = reference_gradient(model, name, x, y, OWN[name])
    torch.testing.assert_close(flat(p.grad for p in model.parameters()), flat(expected.values()), rtol=1e-9, atol=1e-12)

    model, plain = make_model('batch'), make_model('batch')
    make_optimizer(model, name, batchnorm=mode).compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    plain(x)
    for key, value in plain.state_dict().items():
        torch.testing.assert_close(model.state_dict()[key], value, rtol=1e-12, atol=0)


def test_stacked_gradient_is_that_of_the_samples_under_their_own_parts_weights():
    # one layer before BatchNorm: the stacked forward by hand, at the perturbations that the optimizer chose
    x, y = make_batch()
    tail = torch.tensor(COUNTS)[y] < ETA
    model, seen = make_model('batch'), {}
    optimizer = make_optimizer(model, 'ssesam', batchnorm='stacked')
    perturb = optimizer.perturb

    def watching(parts):
        perturb(parts)
        for part in parts:
            names = {id(p): k for k, p in model.named_parameters()}
            seen[part.index] = {names[id(p)]: p.detach() + e for p, e in zip(part.params, part.grads)}

    optimizer.perturb = watching
    optimizer.compute_grads(BatchClosure(model, nn.CrossEntropyLoss(), x, y))
    weights = [{k: v.clone().requires_grad_() for k, v in seen[part].items()} for part in (0, 1)]
    masks = [~tail, tail]
    clean = F.conv2d(x, model.conv.weight, model.conv.bias, padding=1).detach()
    dims = {'dim': (0, 2, 3), 'keepdim': True}
    hidden = torch.zeros(12, 4, 5, 5, dtype=torch.float64)
    for w, m in zip(weights, masks):
        hidden = hidden.index_put((m,), F.conv2d(x[m], w['conv.weight'], w['conv.bias'], padding=1))
    # statistics: of the whole batch before, moved by what the perturbation did to the part's own samples
    std, value = torch.zeros_like(hidden), torch.zeros_like(hidden)
    for m in masks:
        own, before = hidden.detach()[m], clean[m]
        mean = clean.mean(**dims) + own.mean(**dims) - before.mean(**dims)
        var = clean.var(correction=0, **dims) + own.var(correction=0, **dims) - before.var(correction=0, **dims)
        std[m] = (var + 1e-5).sqrt()
        value[m] = (own - mean) / std[m]
    value.requires_grad_()
    loss = 0
    for w, m in zip(weights, masks):
        z = torch.tanh(value[m] * w['norm.weight'][:, None, None] + w['norm.bias'][:, None, None]).mean((2, 3))
        loss = loss + F.cross_entropy(F.linear(z, w['fc.weight'], w['fc.bias']), y[m], reduction='sum') / 12
    loss.backward()
    g, value = value.grad, value.detach()
    hidden.backward((g - g.mean(**dims) - value * (g * value).mean(**dims)) / std)
    for k, p in model.named_parameters():
        torch.testing.assert_close(p.grad, weights[0][k].grad + weights[1][k].grad, rtol=1e-9, atol=1e-12)


# Errors


def test_errors_name_what_is_wrong():
    model = make_model()
    x, y = make_batch()
    params = list(model.parameters())
    create = timm.optim.create_optimizer_v2
    with pytest.raises(ValueError, match='rho must be'):
        create(params, 'sam', rho=-0.1)
    for name in CLASS_AWARE:
        with pytest.raises(TypeError, match='class_counts is missing'):
            create(params, name)
        with pytest.raises(TypeError, match='BatchClosure'):
            make_optimizer(model, name).step(lambda: torch.zeros(()))
        with pytest.raises(ValueError, match='class_counts has 3 entries'):
            make_optimizer(model, name, class_counts=[30, 20, 1]).step(
                BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        for counts in (COUNTS[:-1], [*COUNTS, 1]):
            with pytest.raises(ValueError, match='model gives 6 logits'):
                make_optimizer(model, name, class_counts=counts).step(
                    BatchClosure(model, nn.CrossEntropyLoss(), x[y < 5], y[y < 5]))
    with pytest.raises(TypeError, match="no option 'rhoo'. Did you mean 'rho'"):
        create(params, 'sam', rhoo=0.1)
    with pytest.raises(ValueError, match='sharpness-aware itself'):
        create(params, 'sam', base='asam')
    with pytest.raises(ValueError, match="Did you mean .*'adamw'"):
        create(params, 'sam', base='adamww')
    with pytest.raises(ValueError, match='second-order'):
        create(params, 'sam', base='adahessian')
    closure = BatchClosure(model, nn.CrossEntropyLoss(), x, y)
    with torch.autocast('cpu'), pytest.raises(RuntimeError, match='inside torch.autocast'):
        make_optimizer(model, 'sam').step(closure)
    with pytest.raises(ValueError, match='number of epochs'):
        make_optimizer(model, 'sam', rho_schedule='linear').step(closure)
    with pytest.raises(TypeError, match='attach'):
        make_optimizer(model, 'sam', layers='fc*').step(lambda: F.cross_entropy(model(x), y).backward())
    with pytest.raises(ValueError, match='needs every sample in one part'):
        make_optimizer(model, 'focalsam', batchnorm='stacked').step(closure)
    with pytest.raises(ValueError, match='batchnorm must be one of'):
        make_optimizer(model, 'sam', batchnorm='exact')
    for kind in ('FullyShardedDataParallel', 'DeepSpeedEngine'):
        wrapped = type(kind, (nn.Sequential,), {})(make_model())
        with pytest.raises(ValueError, match=f'{kind} is not supported; use fully_shard'):
            BatchClosure(wrapped, nn.CrossEntropyLoss(), x, y)
    with pytest.raises(ValueError, match='same number of micro-batches'):
        BatchClosure(model, nn.CrossEntropyLoss(), [x, x], [y])


def test_step_after_a_plain_backward_is_a_plain_step_with_one_warning():
    model, plain = make_model(), make_model()
    x, y = make_batch()
    optimizer = make_optimizer(model, 'sam')
    base = torch.optim.SGD(plain.parameters(), lr=0.1, momentum=0.9, weight_decay=1e-3)
    for step in range(2):
        for m, o in ((model, optimizer), (plain, base)):
            o.zero_grad()
            F.cross_entropy(m(x), y).backward()
            if o is optimizer and step == 0:
                with pytest.warns(UserWarning, match='plain step of its base'):
                    o.step()
            else:
                o.step()
    assert_bit_equal(model.state_dict(), plain.state_dict())


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
    optimizer = make_optimizer(model, name, batchnorm='group')
    with pytest.raises(ValueError, match='depends on its whole batch'):
        optimizer_step(optimizer, BatchClosure(model, criterion, x, y))

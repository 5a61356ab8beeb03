"""GSAM, GNP, FriendlySAM, LookSAM and random perturbation: plain float64 references, state, scale and processes."""

import copy
import io

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from sam_reference import assert_bit_equal, flat, make_batch, make_model, make_optimizer
from torch.func import functional_call

from timm_lt.optim import BatchClosure, optimizer_step

OWN = {
    'gsam': {'rho': 0.2, 'alpha': 0.3},
    'gnp': {'rho': 0.2, 'alpha': 0.7},
    'friendlysam': {'rho': 0.2, 'sigma': 0.9, 'lmbda': 0.6},
    'looksam': {'rho': 0.2, 'alpha': 0.7, 'every': 3},
    'rwp': {'rho': 0.2, 'seed': 4},
}
NAMES = tuple(OWN)
KEEP = ('friendlysam', 'looksam')


def make(name, norm='batch', dtype=torch.float32, **options):
    model = make_model(norm, dtype)
    return model, make_optimizer(model, name, **{**OWN[name], **options})


def closure_of(model, step, dtype=torch.float64, criterion=None):
    x, y = make_batch(seed=step, dtype=dtype)
    return BatchClosure(model, criterion or nn.CrossEntropyLoss(), x, y)


def train(model, optimizer, steps, start=0):
    for step in range(start, start + steps):
        optimizer_step(optimizer, closure_of(model, step, torch.float32))


class Reference:
    """The papers' letters on one flat vector."""

    def __init__(self, model, name):
        self.model, self.name, self.own, self.t = model, name, OWN[name], 0
        self.m = self.v = 0.0

    def gradient_at(self, theta, x, y):
        theta = theta.clone().requires_grad_()
        shapes = {k: p for k, p in self.model.named_parameters()}
        parts = dict(zip(shapes, theta.split([p.numel() for p in shapes.values()])))
        buffers = {k: b.clone() for k, b in self.model.named_buffers()}
        at = {**{k: part.view_as(shapes[k]) for k, part in parts.items()}, **buffers}
        loss = F.cross_entropy(functional_call(self.model, at, (x,)), y)
        return torch.autograd.grad(loss, theta)[0]

    def gradient(self, x, y):
        own, t, theta = self.own, self.t, flat(self.model.parameters())
        self.t += 1
        if self.name == 'rwp':
            generator = torch.Generator().manual_seed(own['seed'] * 2**32 + t)
            u = torch.cat([torch.randn(p.shape, generator=generator, dtype=p.dtype).flatten()
                           for p in self.model.parameters()])
            return self.gradient_at(theta + own['rho'] * u / u.norm(), x, y)
        g = self.gradient_at(theta, x, y)
        if self.name == 'looksam' and t % own['every']:
            return g + own['alpha'] * g.norm() / self.v.norm() * self.v
        d = g
        if self.name == 'friendlysam':
            self.m = own['lmbda'] * self.m + (1 - own['lmbda']) * g
            d = g - own['sigma'] * self.m
        g_p = self.gradient_at(theta + own['rho'] * d / d.norm(), x, y)
        if self.name == 'gsam':
            orthogonal = g - g @ g_p / (g_p @ g_p) * g_p
            return g_p - own['alpha'] * orthogonal
        if self.name == 'gnp':
            return (1 - own['alpha']) * g + own['alpha'] * g_p
        if self.name == 'looksam':
            self.v = g_p - g_p @ g / (g @ g) * g
        return g_p


@pytest.mark.parametrize('norm', ['batch', 'group'])
@pytest.mark.parametrize('name', NAMES)
def test_gradients_match_the_plain_reference_over_many_steps(name, norm):
    model, optimizer = make(name, norm, torch.float64)
    reference = Reference(model, name)
    for step in range(7):
        closure = closure_of(model, step)
        expected = reference.gradient(closure.inputs[0], closure.targets[0])
        optimizer.compute_grads(closure)
        torch.testing.assert_close(flat(p.grad for p in model.parameters()), expected, rtol=1e-8, atol=1e-11)
        optimizer.step()


@pytest.mark.parametrize('name', NAMES)
def test_buffers_are_those_of_one_forward_and_weights_are_restored(name):
    model, optimizer = make(name)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    optimizer.compute_grads(closure_of(model, 0, torch.float32))
    assert all(torch.equal(before[k], p) for k, p in model.named_parameters())
    assert int(model.norm.num_batches_tracked) == 1


@pytest.mark.parametrize('name', NAMES)
def test_radius_zero_is_bit_equal_to_the_base(name):
    model, optimizer = make(name, rho=0.0)
    plain = copy.deepcopy(model)
    base = make_optimizer(plain, 'momentum')
    train(model, optimizer, 3)
    train(plain, base, 3)
    assert_bit_equal(model.state_dict(), plain.state_dict())


@pytest.mark.parametrize('base', ['momentum', 'adamw'])
@pytest.mark.parametrize('name', [*NAMES, 'lookahead_looksam'])
def test_a_resumed_run_is_bit_equal(name, base):
    own = OWN[name.removeprefix('lookahead_')]
    model = make_model('batch', torch.float32)
    optimizer = make_optimizer(model, name, base=base, **own)
    train(model, optimizer, 4)
    file = io.BytesIO()
    torch.save({'model': model.state_dict(), 'optimizer': optimizer.state_dict()}, file)
    train(model, optimizer, 4, start=4)
    resumed = make_model('batch', torch.float32)
    other = make_optimizer(resumed, name, base=base, **own)
    saved = torch.load(io.BytesIO(file.getvalue()), weights_only=True)
    resumed.load_state_dict(saved['model'])
    other.load_state_dict(saved['optimizer'])
    train(resumed, other, 4, start=4)
    assert_bit_equal(model.state_dict(), resumed.state_dict())


@pytest.mark.parametrize('name', NAMES)
def test_a_plain_closure_gives_the_same_steps(name):
    states = []
    for plain in (False, True):
        model, optimizer = make(name, 'group')
        for step in range(4):
            x, y = make_batch(seed=step, dtype=torch.float32)

            def closure(model=model, optimizer=optimizer, x=x, y=y):
                optimizer.zero_grad()
                loss = F.cross_entropy(model(x), y)
                loss.backward()
                return loss

            optimizer.step(closure if plain else BatchClosure(model, nn.CrossEntropyLoss(), x, y))
        states.append(model.state_dict())
    assert_bit_equal(*states)


@pytest.mark.parametrize('name', NAMES)
def test_a_loss_scale_does_not_change_the_step(name):
    class Scaled(nn.CrossEntropyLoss):
        def forward(self, logits, target):
            return 1024.0 * super().forward(logits, target)

    gradients = []
    for criterion, scale in ((nn.CrossEntropyLoss(), None), (Scaled(), 1024.0)):
        model, optimizer = make(name, 'group', torch.float64)
        for step in range(5):
            optimizer.compute_grads(closure_of(model, step, criterion=criterion), scale)
            for p in model.parameters():
                p.grad /= scale or 1.0
            optimizer.step()
        gradients.append(flat(p.grad for p in model.parameters()))
    torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize('name', KEEP)
def test_a_skipped_step_leaves_the_kept_vector(name):
    model, optimizer = make(name)
    train(model, optimizer, 1)
    before = copy.deepcopy(optimizer.state_dict())
    optimizer._own['step'] = 0  # perturbed again, where a vector is found
    optimizer.compute_grads(closure_of(model, 5, torch.float32))
    optimizer.zero_grad()  # what follows a step that the scaler skipped
    optimizer._own['step'] = 1
    for a, b in zip(optimizer.state_dict()['state'].values(), before['state'].values()):
        assert_bit_equal(a, b)


@pytest.mark.parametrize('name', KEEP)
def test_kept_vectors_are_entries_of_the_state_of_every_parameter(name):
    model, optimizer = make(name, layers='fc*')
    train(model, optimizer, 1)
    key = optimizer.vector_key
    shapes = [(p.shape, optimizer.state[p][key].shape) for p in model.parameters()]
    assert all(a == b for a, b in shapes) and len(optimizer.state) == len(shapes)
    # a plain step, with which torch prepares the loading of sharded checkpoints, makes the entries too
    model, optimizer = make(name, lr=0.0)
    F.cross_entropy(model(make_batch(dtype=torch.float32)[0]), make_batch()[1]).backward()
    optimizer.step()
    assert all(not optimizer.state[p][key].any() for p in model.parameters())


@pytest.mark.parametrize('name', NAMES)
def test_local_ascent_is_refused(name):
    with pytest.raises(ValueError, match='local_ascent=False'):
        make(name, local_ascent=True)


def test_special_values_are_sam_and_the_base():
    def steps(name, **options):
        model = make_model('batch', torch.float32)
        train(model, make_optimizer(model, name, **options), 4)
        return model.state_dict()

    sam = steps('sam', rho=0.2)
    for name, options in ('gsam', {'alpha': 0.0}), ('gnp', {'alpha': 1.0}), ('friendlysam', {'sigma': 0.0}), (
            'looksam', {'every': 1}):
        torch.testing.assert_close(steps(name, rho=0.2, **options), sam, msg=name)
    torch.testing.assert_close(steps('looksam', rho=0.2, every=3, alpha=0.0), steps('sam', rho=0.2, every=3))
    assert_bit_equal(steps('gnp', alpha=0.0), steps('momentum'))

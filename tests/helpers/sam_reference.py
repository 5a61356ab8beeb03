"""A small network, its batches, and every method's gradient in plain float64, in the papers' letters."""

import timm
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

import timm_lt  # noqa: F401  registers the optimizers

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


class Overflowing(nn.CrossEntropyLoss):
    """Cross-entropy whose call number ``at`` is infinite."""

    def __init__(self, at=None):
        super().__init__()
        self.at, self.calls = at, 0

    def forward(self, logits, target):
        value = super().forward(logits, target)
        self.calls += 1
        return value * float('inf') if self.calls - 1 == self.at else value

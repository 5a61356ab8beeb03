"""Network, batches and optimizer of the tests of GSA."""

import timm
import torch
import torch.nn as nn

from timm_lt.gkp import GroupPenalty

COUNTS = [90, 40, 12, 5, 1]
GROUPS = [0, 0, 1, 2, 2]
SAMPLES = [130, 12, 6]


class Net(nn.Module):
    def __init__(self, norm):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.norm = nn.BatchNorm2d(4) if norm == 'batch' else nn.GroupNorm(2, 4)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        return self.head(torch.tanh(self.norm(self.conv(x))).mean((2, 3)))


def problem(norm='batch', batch=10, seed=0):
    torch.manual_seed(seed)
    model = Net(norm).double()
    x, y = torch.randn(batch, 1, 6, 6).double(), torch.randint(0, 5, (batch,))
    y[:5] = torch.arange(5)
    return model, x, y


def make(model, **options):
    options = {'lr': 0.1, 'momentum': 0.9, 'weight_decay': 1e-3, 'class_counts': COUNTS, 'groups': GROUPS, **options}
    return timm.optim.create_optimizer_v2(model, 'gsa', **options)


def penalty_of(model, dtype=torch.float64):
    encoder = list(model.conv.parameters()) + list(model.norm.parameters())
    generator = torch.Generator().manual_seed(7)
    fishers, anchors = ([[torch.rand(p.shape, generator=generator, dtype=torch.float64).to(dtype) for p in encoder]
                         for _ in range(3)] for _ in range(2))
    return GroupPenalty(encoder, fishers, anchors, SAMPLES)

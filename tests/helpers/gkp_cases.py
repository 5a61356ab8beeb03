"""Network, images and trainer of the tests of GKP."""

import contextlib
from types import SimpleNamespace

import timm
import torch
import torch.nn as nn

from timm_lt.gkp import GKP, capped_indices

COUNTS = [20, 12, 6, 4, 2, 1]


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3)
        self.bn = nn.BatchNorm2d(4)
        self.fc = nn.Linear(4, 6)

    def get_classifier(self):
        return self.fc

    def forward(self, x):
        return self.fc(torch.tanh(self.bn(self.conv(x))).mean((2, 3)))


def images():
    generator = torch.Generator().manual_seed(3)
    y = torch.repeat_interleave(torch.arange(6), torch.tensor(COUNTS))
    x = torch.randn(len(y), 1, 6, 6, generator=generator) + torch.randn(6, 1, 6, 6, generator=generator)[y]
    return x, y


class Loader:
    """Capped images in a mixed order, batches of 8."""

    def __init__(self):
        x, y = images()
        chosen = capped_indices(y, 5)
        self.x, self.y = x[chosen], y[chosen]

    def __iter__(self):
        yield from zip(self.x.split(8), self.y.split(8))


def make_trainer(epochs=6, **options):
    torch.manual_seed(0)
    model = Net()
    optimizer = timm.optim.create_optimizer_v2(
        model, 'gsa', lr=0.05, momentum=0.9, class_counts=COUNTS, num_groups=3, **options)
    accelerator = SimpleNamespace(
        unwrap_model=lambda model, keep_torch_compile=False: model, autocast=contextlib.nullcontext)
    return SimpleNamespace(model=model, optimizer=optimizer, accelerator=accelerator, epochs=epochs)


def make_gkp(**options):
    return GKP(COUNTS, Loader(), **{'num_groups': 3, 'regroup_every': 2, **options})

"""Network, batches and optimizer of the tests of CC-SAM."""

import timm
import torch
import torch.nn as nn

from timm_lt.models import CosineClassifier

COUNTS = [60, 30, 12, 5, 1]
SCALE, SHARE = 0.2, 0.4


class Net(nn.Module):
    def __init__(self, norm='batch', head='linear', dropout=0.0):
        super().__init__()
        self.conv = nn.Conv2d(2, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6) if norm == 'batch' else nn.GroupNorm(2, 6)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(6, len(COUNTS)) if head == 'linear' else CosineClassifier(6, len(COUNTS), 4.0)

    def forward(self, x):
        return self.fc(self.drop(torch.tanh(self.norm(self.conv(x))).mean((2, 3))))

    def get_classifier(self):
        return self.fc


def make_model(dtype=torch.float64, **options):
    torch.manual_seed(1)
    return Net(**options).to(dtype)


def make_batch(seed=0, size=12, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(size, 2, 5, 5, generator=g, dtype=dtype), torch.randint(len(COUNTS), (size,), generator=g)


def make(model, **options):
    options = {
        'lr': 0.1, 'weight_decay': 1e-3, 'momentum': 0.9, 'scale': SCALE, 'perturbed_share': SHARE,
        'class_counts': COUNTS, **options}
    return timm.optim.create_optimizer_v2(list(model.parameters()), 'ccsam', **options)

"""Labels of a small long-tailed set, and samplers of it with settings that show their law."""

import torch

import timm_lt

NAMES = timm_lt.list_samplers()
COUNTS = [40, 17, 9, 4, 1]


def make_targets(counts=COUNTS):
    targets = torch.repeat_interleave(torch.arange(len(counts)), torch.tensor(counts))
    return targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(5))]


def make(name, targets=None, **kwargs):
    if name == 'progressive':
        kwargs.setdefault('num_epochs', 8)
    return timm_lt.create_sampler(name, make_targets() if targets is None else targets, **kwargs)


def drawn_per_class(sampler, targets, epoch):
    return torch.bincount(targets[sampler.order(epoch)], minlength=int(targets.max()) + 1)


def options(name):
    return {'repeat_factor': {'threshold': 0.2}, 'power': {'q': 0.3}, 'm_per_class': {'m': 1}}.get(name, {})

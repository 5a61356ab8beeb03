"""Diagonal Fisher of ``timm_lt.gkp``, per sample and as released, for cross-entropy and logit adjustment."""

import torch
import torch.nn as nn
import torch.nn.functional as F

import timm_lt
from timm_lt.gkp import diagonal_fisher


def check(golden):
    inputs, targets, counts = golden['inputs'], golden['targets'], golden['class_counts']
    w1, b1, w2, b2 = (golden[f'init_{name}'] for name in ('w1', 'b1', 'w2', 'b2'))
    model = nn.Sequential(nn.Linear(*w1.shape[::-1]), nn.Tanh(), nn.Linear(*w2.shape[::-1])).double()
    for parameter, value in zip(model.parameters(), (w1, b1, w2, b2)):
        with torch.no_grad():
            parameter.copy_(value)
    criteria = {
        'cross_entropy': F.cross_entropy,
        'logit_adjusted': timm_lt.create_loss('logit_adjustment', class_counts=counts),
    }
    size = golden['hp_batch_size']
    batches = list(zip(inputs.split(size), targets.split(size)))
    for name, criterion in criteria.items():
        for form in ('released', 'per_sample'):
            fisher = diagonal_fisher(model, batches, criterion, form=form)
            golden.check(f'{form}_{name}', torch.cat([f.flatten() for f in fisher]))

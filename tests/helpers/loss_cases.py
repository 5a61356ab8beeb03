"""Losses by name, options that change their gradients, and batches to call them on."""

import torch
import torch.nn.functional as F

from timm_lt import create_loss, list_losses
from timm_lt._registry import LOSSES
from timm_lt.losses import statistics

NAMES = list_losses(views=True)
SOFT = list_losses(soft_targets=True)
HARD_ONLY = list_losses(soft_targets=False, views=True)
WEIGHTED = [n for n in NAMES if LOSSES.info(n).factory.takes_class_weight]
COUNTS = [500, 120, 30, 6, 1]
C = len(COUNTS)
# options that change the gradient, each apart from the default
OPTIONS = {
    'logit_adjustment': [dict(tau=0.5)],
    'ldam': [dict(max_margin=0.2), dict(scale=10.0)],
    'vs': [dict(gamma=0.1), dict(tau=0.5)],
    'focal': [dict(gamma=1.0), dict(gamma=0.5), dict(variant='released', class_weight=[1.0, 2.0, 3.0, 4.0, 5.0])],
    'class_balanced': [
        dict(beta=0.9), dict(form='sigmoid'), dict(form='focal'), dict(form='focal', gamma=1.0),
        dict(variant='released')],
    'eql': [dict(threshold=0.5), dict(gamma=0.2)],
    'las': [dict(smooth_head=0.1), dict(smooth_tail=0.05), dict(shape='linear'), dict(shape='convex'),
            dict(shape='exp'), dict(shape='exp', power=3.0)],
    'gcl': [dict(noise_factor=1.0), dict(noise_std=0.1), dict(margin=0.1), dict(scale=20.0), dict(focal_gamma=1.0)],
    'lade': [dict(regularizer_weight=0.5), dict(remine_lambda=0.5), dict(variant='released')],
    'gala': [dict(lambda1=0.5), dict(lambda2=0.2), dict(epsilon=0.1), dict(variant='released')],
    'balpoe': [dict(taus=[0.0, 1.0])],
    'proco': [dict(contrastive_weight=0.1), dict(temperature=0.5), dict(tau=0.5)],
    'bcl': [dict(classification_weight=1.0), dict(contrastive_weight=0.1), dict(temperature=0.5), dict(tau=0.5)],
}


def make_batch(batch=16, classes=C, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    logits = (torch.rand(batch, classes, generator=generator, dtype=torch.float64) * 2 - 1) * scale
    target = torch.randint(classes, (batch,), generator=generator)
    return logits.to(dtype), target


def output_of(name, logits):
    """What the loss takes, as a function of the logits."""
    if name not in ('bcl', 'proco'):
        return logits
    generator = torch.Generator().manual_seed(2)
    lift = torch.randn(logits.shape[1], 128 if name == 'proco' else 8, generator=generator, dtype=torch.float64)
    first = F.normalize(logits.double() @ lift + 0.1, dim=1)
    second = F.normalize(logits.double() @ lift.flip(1) - 0.1, dim=1)
    if name == 'proco':
        return logits, torch.stack([first, second], 1).to(logits.dtype)
    prototypes = F.normalize(torch.randn(logits.shape[1], 8, generator=generator, dtype=torch.float64), dim=1)
    return logits, torch.stack([first, second], 1).to(logits.dtype), prototypes.to(logits.dtype)


def build(name, class_counts=COUNTS, **options):
    loss = create_loss(name, class_counts, **options)
    if name == 'gala':
        # statistics as they stand in mid-training
        with torch.no_grad():
            loss.margin_sum.copy_(torch.linspace(3.0, 0.2, len(class_counts)))
    return loss


def call(name, loss, logits, target, **kwargs):
    """The loss with the same draws and the same statistics each time."""
    torch.manual_seed(3)
    with statistics(loss, 'hold'):
        return loss(output_of(name, logits), target, **kwargs)


def gradient(name, loss, logits, target):
    logits = logits.clone().requires_grad_()
    return torch.autograd.grad(call(name, loss, logits, target), logits)[0]


def random_soft(batch, classes):
    generator = torch.Generator().manual_seed(4)
    return torch.rand(batch, classes, generator=generator, dtype=torch.float64).softmax(1)

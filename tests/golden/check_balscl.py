"""Balanced supervised contrastive loss."""

import torch

from timm_lt.losses import balanced_contrastive_loss


def check(golden):
    features, centers = golden['features'].requires_grad_(), golden['centers'].requires_grad_()
    assert len(centers) == golden['num_classes']
    for key in golden.keys(suffix='__loss'):
        name = key.removesuffix('__loss')
        temperature = golden[f'{name}__temperature']
        loss = balanced_contrastive_loss(features, centers, golden['targets'], temperature)
        golden.check(key, loss)
        grad_features, grad_centers = torch.autograd.grad(loss, (features, centers))
        golden.check(f'{name}__grad_features', grad_features)
        golden.check(f'{name}__grad_centers', grad_centers)
        values = balanced_contrastive_loss(features, centers, golden['targets'], temperature, reduction='none')
        torch.testing.assert_close(values.mean(), loss)

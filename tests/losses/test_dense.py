"""Losses on a logit for every pixel: the values of the pixels as samples, ignored ones left out, counts of masks."""

import numpy as np
import pytest
import torch
from loss_cases import COUNTS, SOFT, C, build

from timm_lt import ClassDistribution, create_loss, list_losses
from timm_lt.losses import DenseLoss, statistics

NAMES = list_losses()


def dense_batch():
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(2, C, 3, 4, generator=generator, dtype=torch.float64) / 4
    target = torch.randint(C, (2, 3, 4), generator=generator)
    return logits, target


def pixels(logits):
    return torch.stack([logits[b, :, h, w] for b in range(2) for h in range(3) for w in range(4)])


def value(loss, *args, **kwargs):
    torch.manual_seed(0)  # losses that draw
    with statistics(getattr(loss, 'criterion', loss), 'hold'):
        return loss(*args, **kwargs)


@pytest.mark.parametrize('name', NAMES)
def test_pixels_are_samples(name):
    logits, target = dense_batch()
    loss = build(name).eval()
    for reduction in ('mean', 'sum', 'none'):
        expected = value(loss, pixels(logits), target.flatten(), reduction=reduction)
        got = value(DenseLoss(loss), logits, target, reduction=reduction)
        assert got.shape == (target.shape if reduction == 'none' else ())
        torch.testing.assert_close(got.flatten(), expected.flatten())


@pytest.mark.parametrize('name', NAMES)
def test_ignored_pixels_leave_the_mean_alone(name):
    logits, target = dense_batch()
    loss = build(name).eval()
    left_out = target.clone()
    left_out[0, 1] = 255
    left_out[1, 0, 0] = -100
    kept = (left_out >= 0) & (left_out < C)
    expected = value(loss, pixels(logits)[kept.flatten()], target[kept])
    torch.testing.assert_close(value(DenseLoss(loss), logits, left_out), expected)


@pytest.mark.parametrize('name', SOFT)
def test_soft_targets_of_pixels(name):
    logits, _ = dense_batch()
    soft = torch.rand_like(logits).softmax(1)
    loss = build(name).eval()
    torch.testing.assert_close(value(DenseLoss(loss), logits, soft), value(loss, pixels(logits), pixels(soft)))


def test_gradient_reaches_the_pixels_that_count():
    logits, target = dense_batch()
    target[0, 1] = 7
    logits.requires_grad_()
    DenseLoss(create_loss('vs', COUNTS), ignore_index=7)(logits, target).backward()
    assert not logits.grad[0, :, 1].any() and logits.grad[0, :, 0].any()


def test_masks_are_counted():
    masks = [torch.tensor([[0, 0], [1, 255]]), np.array([[0, 2], [2, 2]], dtype=np.uint8)]
    assert ClassDistribution.from_masks(masks, 4).counts.tolist() == [3, 1, 3, 0]
    assert ClassDistribution.from_masks(masks, 256, ignore_index=0).counts[255] == 1
    with pytest.raises(ValueError, match='label'):
        ClassDistribution.from_masks(masks, 2)


def test_what_does_not_fit_is_refused():
    logits, target = dense_batch()
    with pytest.raises(TypeError, match='BCLLoss'):
        DenseLoss(create_loss('bcl', COUNTS))
    with pytest.raises(TypeError, match='CrossEntropyLoss'):
        DenseLoss(torch.nn.CrossEntropyLoss())
    with pytest.raises(ValueError, match=r'\(B, C, H, W\)'):
        DenseLoss(create_loss('vs', COUNTS))(logits, target[:, 0])

"""ProCo: Bessel functions and expected similarities against references, the loss, its statistics, its network."""

import copy
import importlib

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from scipy import special

from timm_lt import create_loss
from timm_lt.losses import concentration_of, proco_logits, statistics
from timm_lt.losses._von_mises_fisher import log_bessel_over_power, log_expected_similarity
from timm_lt.models import ProCoModel, ProCoOutput

COUNTS = [20, 6, 2, 1]
C, D = len(COUNTS), 6


def batch(size=7, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(size, C, generator=generator, dtype=torch.float64)
    features = F.normalize(torch.randn(size, 2, D, generator=generator, dtype=torch.float64), dim=2)
    return ProCoOutput(logits, features), torch.randint(C, (size,), generator=generator)


@pytest.mark.parametrize('order', [0, 0.5, 2, 11.5, 63, 255])
def test_log_bessel_and_its_gradient_match_scipy(order):
    values = np.array([0.5, 3.0, 40.0, 300.0, 2e3, 6e3, 1e5])
    if order == 255:  # scipy underflows below
        values = values[2:]
    x = torch.tensor(values, requires_grad=True)
    got = log_bessel_over_power(x, order)
    scaled = special.ive(order, values)
    expected = np.log(scaled) + values - order * np.log(values)
    np.testing.assert_allclose(got.detach().numpy(), expected, rtol=1e-9, atol=1e-8)
    gradient, = torch.autograd.grad(got.sum(), x)
    np.testing.assert_allclose(gradient.numpy(), special.ive(order + 1, values) / scaled, rtol=1e-8)


def test_log_bessel_is_finite_at_zero():
    x = torch.zeros(1, dtype=torch.float64, requires_grad=True)
    value = log_bessel_over_power(x, 63.0)
    assert value.item() == pytest.approx(-63 * np.log(2) - special.gammaln(64), abs=1e-8)
    assert torch.autograd.grad(value, x)[0].item() == 0


def test_expected_similarity_matches_quadrature_on_the_sphere():
    """The integral of the density of a class times exp(f . z / t) over all z of length 1 in three dimensions."""
    temperature, kappa = 0.3, 4.0
    mean = F.normalize(torch.tensor([[0.3, -0.5, 0.8]], dtype=torch.float64), dim=1)
    feature = F.normalize(torch.tensor([[-0.2, 0.9, 0.1]], dtype=torch.float64), dim=1)
    height, weight = np.polynomial.legendre.leggauss(60)
    angle = np.arange(120) * 2 * np.pi / 120
    radius = np.sqrt(1 - height ** 2)[:, None]
    z = np.stack([radius * np.cos(angle), radius * np.sin(angle), np.broadcast_to(height[:, None], (60, 120))], -1)
    density = np.exp(kappa * (z @ mean[0].numpy()))
    density /= (density.sum(1) * weight).sum()
    expected = np.log(((density * np.exp(z @ feature[0].numpy() / temperature)).sum(1) * weight).sum())
    got = log_expected_similarity(feature, mean, torch.tensor([kappa]), temperature)
    assert got.item() == pytest.approx(expected, rel=1e-8)


def test_logits_have_the_gradient_of_their_differences():
    output, _ = batch()
    mean = 0.7 * F.normalize(torch.randn(C, D, dtype=torch.float64), dim=1)
    features = output.features[:, 0].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda f: proco_logits(f, mean, 0.1), (features,))


def test_concentration_grows_with_the_length_of_the_mean_and_is_bounded():
    mean = torch.tensor([[0.5, 0.0, 0.0], [0.9, 0.0, 0.0], [1.0, 0.0, 0.0]], dtype=torch.float64)
    assert concentration_of(mean).tolist() == pytest.approx([2.0, 3 * 0.9 / 0.19, 1e5])


def plain_loss(output, target, mean, weight, temperature, tau):
    prior = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    values = F.cross_entropy(output.logits + tau * prior.log(), target, reduction='none')
    for v in range(2):
        similarity = proco_logits(output.features[:, v], mean, temperature) + tau * prior.log()
        values = values + weight / 2 * F.cross_entropy(similarity, target, reduction='none')
    return values


def test_loss_is_the_sum_of_the_parts_at_the_means_of_the_steps_before():
    loss = create_loss('proco', COUNTS, contrastive_weight=0.7, temperature=0.2, tau=0.5, feature_dim=D)
    seen = [batch(seed=seed) for seed in range(4)]
    for step, (output, target) in enumerate(seen):
        if step in (1, 3):
            loss.set_epoch(step)
        counted = seen[{0: 0, 1: 0, 2: 0, 3: 1}[step]:step]  # of this epoch and the last one
        mean = loss.initial_mean.clone()
        for c in range(C):
            own = [o.features[t == c].flatten(0, 1) for o, t in counted]
            if sum(map(len, own)):
                mean[c] = torch.cat(own).mean(0)
        torch.testing.assert_close(loss.class_mean, mean)
        expected = plain_loss(output, target, mean, 0.7, 0.2, 0.5)
        torch.testing.assert_close(loss(output, target, reduction='none'), expected)


def test_statistics_are_held_staged_discarded_and_resumed():
    loss, (output, target) = create_loss('proco', COUNTS, feature_dim=D), batch()
    start = loss.class_mean.clone()
    with statistics(loss, 'hold'):
        loss(output, target)
    with torch.no_grad():
        loss(output, target)
    assert torch.equal(loss.class_mean, start) and not loss.pending.any()
    with statistics(loss, 'staged'):
        loss(output, target)
        assert torch.equal(loss.class_mean, start)
        loss.discard_statistics()
        loss(output, target)
        loss.commit_statistics()
    assert loss.feature_sums[:, -1].tolist() == [2 * int((target == c).sum()) for c in range(C)]
    loss.set_epoch(3)
    loss(output, target)
    resumed = create_loss('proco', COUNTS, feature_dim=D)
    resumed.load_state_dict(loss.state_dict())
    resumed.set_epoch(3)  # in the middle of the epoch
    for each in (loss, resumed):
        each.set_epoch(4)
    torch.testing.assert_close(resumed.class_mean, loss.class_mean)
    torch.testing.assert_close(resumed(output, target), loss(output, target))


def test_processes_hold_the_statistics_of_the_joint_batch(monkeypatch):
    module = importlib.import_module('timm_lt.losses.proco')
    joint, (output, target) = create_loss('proco', COUNTS, feature_dim=D), batch()
    joint(output, target)
    ranks = [create_loss('proco', COUNTS, feature_dim=D) for _ in range(2)]
    for loss, part in zip(ranks, (slice(0, 3), slice(3, 7))):
        with statistics(loss, 'staged'):
            loss(ProCoOutput(output.logits[part], output.features[part]), target[part])
    total = ranks[0].pending + ranks[1].pending
    monkeypatch.setattr(module, 'several_processes', lambda: True)
    monkeypatch.setattr(module.dist, 'all_reduce', lambda tensor: tensor.copy_(total))
    for loss in ranks:
        loss.commit_statistics()
        torch.testing.assert_close(loss.class_mean, joint.class_mean)


def test_ignored_samples_leave_value_and_statistics_alone():
    output, target = batch()
    ignored = target.clone()
    ignored[2] = -100
    kept = [i for i in range(7) if i != 2]
    loss, other = (create_loss('proco', COUNTS, feature_dim=D) for _ in range(2))
    value = loss(output, ignored)
    torch.testing.assert_close(
        value, other(ProCoOutput(output.logits[kept], output.features[kept]), target[kept]))
    torch.testing.assert_close(loss.feature_sums, other.feature_sums)


def test_plain_logits_are_refused_in_training_and_other_lengths_always():
    loss, (output, target) = create_loss('proco', COUNTS), batch()
    with pytest.raises(TypeError, match='ProCoModel'):
        loss(output.logits, target)
    with pytest.raises(ValueError, match='projection_dim'):
        loss(output, target)
    torch.testing.assert_close(
        loss.eval()(output.logits, target), create_loss('balanced_softmax', COUNTS)(output.logits, target))


def test_network_gives_logits_of_the_first_view_and_unit_features_of_the_others():
    torch.manual_seed(0)
    net = timm.create_model('resnet20_cifar', num_classes=C)
    model = create_loss('proco', COUNTS).wrap_model(net)
    assert isinstance(model, ProCoModel) and model.plain_model() is net
    views = torch.randn(3, 3, 3, 8, 8)
    output = model.eval()(views)
    torch.testing.assert_close(output.logits, net(views[:, 0]))
    expected = model.projection(net.forward_head(net.forward_features(views[:, 2]), pre_logits=True))
    torch.testing.assert_close(output.features[:, 1], F.normalize(expected, dim=1))
    assert torch.equal(model(views[:, 0]), net(views[:, 0]))
    loss = create_loss('proco', COUNTS)
    loss(model.train()(views), torch.tensor([0, 1, 1])).backward()
    assert all(p.grad is not None for p in copy.copy(model).parameters())

import math

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

from timm_lt.gkp import GroupPenalty, QuadraticPenalty, alpha_schedule, diagonal_fisher
from timm_lt.optim import BatchClosure


def random_problem(num_groups, dtype=torch.float64):
    parameters = [torch.randn(3, 2, dtype=dtype), torch.randn(4, dtype=dtype)]
    fishers = [[torch.rand_like(p) for p in parameters] for _ in range(num_groups)]
    anchors = [[torch.randn_like(p) for p in parameters] for _ in range(num_groups)]
    return parameters, fishers, anchors, [7 * (k + 1) for k in range(num_groups)]


def naive(parameters, fishers, anchors, sizes, weights, strength):
    """The double sum as it is written, with gradients from autograd."""
    theta = [p.clone().requires_grad_() for p in parameters]
    total = sum(p.sum() * 0 for p in theta)
    for k, weight in enumerate(weights):
        for j in range(len(sizes)):
            if j != k:
                for t, f, a in zip(theta, fishers[j], anchors[j]):
                    total = total + weight * strength / 2 / sizes[j] * (f * (t - a) ** 2).sum()
    return total.detach(), torch.autograd.grad(total, theta)


@pytest.mark.parametrize('weights', [None, [1, 0, 1, 0], [0.5, 0.25, 0.25, 0]])
def test_one_quadratic_equals_the_double_sum(weights):
    problem = random_problem(4)
    penalty = GroupPenalty(*problem).quadratic(weights)
    value, gradients = naive(*problem, weights or [1] * 4, 100.0)
    torch.testing.assert_close(penalty.value(), value)
    torch.testing.assert_close(penalty.gradients(), list(gradients))


def test_penalty_follows_the_live_parameters():
    problem = random_problem(3)
    penalty = GroupPenalty(*problem).quadratic()
    with torch.no_grad():
        problem[0][0].add_(1.0)
    value, gradients = naive(*problem, [1] * 3, 100.0)
    torch.testing.assert_close(penalty.value(), value)
    torch.testing.assert_close(penalty.gradients(), list(gradients))


def test_penalty_is_zero_at_a_common_anchor_and_with_one_group():
    parameters, fishers, anchors, sizes = random_problem(3)
    common = [[p.clone() for p in parameters] for _ in range(3)]
    penalty = GroupPenalty(parameters, fishers, common, sizes).quadratic()
    assert float(penalty.value()) == pytest.approx(0, abs=1e-12)
    alone = GroupPenalty(parameters, fishers[:1], anchors[:1], sizes[:1]).quadratic()
    assert float(alone.value()) == 0 and all(not g.any() for g in alone.gradients())


def test_zero_fisher_entries_stay_finite():
    parameters, fishers, anchors, sizes = random_problem(3)
    for f in fishers:
        f[0].zero_()
        f[1][1] = 0
    for p in fishers[0]:
        p.zero_()
    penalty = GroupPenalty(parameters, fishers, anchors, sizes).quadratic()
    value, gradients = naive(parameters, fishers, anchors, sizes, [1] * 3, 100.0)
    torch.testing.assert_close(penalty.value(), value)
    torch.testing.assert_close(penalty.gradients(), list(gradients))


def test_memory_of_the_quadratic_does_not_grow_with_the_groups():
    held = []
    for num_groups in (2, 8):
        penalty = GroupPenalty(*random_problem(num_groups)).quadratic()
        held.append(sum(t.numel() for t in penalty.curvature + penalty.centre))
    assert held[0] == held[1] == 20


def test_penalty_state_round_trips():
    problem = random_problem(3)
    penalty = GroupPenalty(*problem).quadratic()
    other = QuadraticPenalty(problem[0])
    other.load_state_dict(penalty.state_dict())
    assert torch.equal(other.value(), penalty.value())
    assert all(torch.equal(a, b) for a, b in zip(other.gradients(), penalty.gradients()))
    with pytest.raises(ValueError, match='another encoder'):
        QuadraticPenalty(problem[0][:1]).load_state_dict(penalty.state_dict())


def test_negative_weight_is_refused():
    with pytest.raises(ValueError, match='weight must be in'):
        QuadraticPenalty([torch.zeros(1)]).add(-1.0, [torch.ones(1)], [torch.ones(1)])


def test_alpha_falls_along_a_half_cosine():
    assert alpha_schedule(0) == pytest.approx(0.95) and alpha_schedule(1) == pytest.approx(0.6)
    assert alpha_schedule(0.25) == pytest.approx(0.6 + 0.175 * (1 + math.cos(math.pi / 4)))
    assert alpha_schedule(0.5, 0.9, 0.8) == pytest.approx(0.85)


class TinyNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(1, 3, 3)
        self.bn = nn.BatchNorm2d(3)
        self.head = nn.Linear(3, 4)

    def forward(self, x):
        return self.head(F.relu(self.bn(self.conv(x)), inplace=True).mean((2, 3)))


def test_fisher_of_a_convolutional_network_matches_a_loop_over_samples():
    model = TinyNet()
    model(torch.randn(8, 1, 5, 5))
    model.eval()
    x, y = torch.randn(7, 1, 5, 5), torch.randint(0, 4, (7,))
    before = {n: b.clone() for n, b in model.named_buffers()}
    expected = [torch.zeros_like(p) for p in model.parameters()]
    for i in range(7):
        gradients = torch.autograd.grad(F.cross_entropy(model(x[i:i + 1]), y[i:i + 1]), list(model.parameters()))
        expected = [e + g ** 2 / 7 for e, g in zip(expected, gradients)]
    fisher = diagonal_fisher(model, list(zip(x.split(3), y.split(3))), F.cross_entropy)
    torch.testing.assert_close(fisher, expected)
    assert all(torch.equal(b, before[n]) for n, b in model.named_buffers())
    assert all(p.grad is None for p in model.parameters())
    only = diagonal_fisher(model, [(x, y)], F.cross_entropy, [model.conv.weight])
    torch.testing.assert_close(only, expected[:1])


def test_fisher_without_a_sample_is_zero_and_a_foreign_parameter_is_refused():
    model = TinyNet().eval()
    assert all(not f.any() for f in diagonal_fisher(model, [], F.cross_entropy))
    with pytest.raises(ValueError, match='of the model'):
        diagonal_fisher(model, [], F.cross_entropy, [nn.Parameter(torch.zeros(2))])


@pytest.mark.parametrize('dtype', [torch.float16, torch.bfloat16], ids=str)
def test_statistics_of_a_network_in_half_precision_keep_their_digits(dtype):
    torch.manual_seed(0)
    model = nn.Linear(4, 3).to(dtype)
    x, y = torch.randn(6, 4).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])
    low = diagonal_fisher(model, [(x, y)], F.cross_entropy)
    full = diagonal_fisher(model.float(), [(x.float(), y)], F.cross_entropy)
    torch.testing.assert_close(low, full, rtol=0.05, atol=1e-4)
    assert all(f.dtype == torch.float32 for f in low)
    # squares below the smallest number of float16
    tiny = diagonal_fisher(model.to(dtype), [(x, y)], lambda z, t: 1e-4 * F.cross_entropy(z, t))
    assert all(float(f.max()) > 0 for f in tiny)


def test_penalty_survives_a_cast_of_its_network():
    model = nn.Linear(4, 3)
    penalty = QuadraticPenalty(list(model.parameters()))
    penalty.add(1e6, [torch.full_like(p, 0.123) for p in model.parameters()], [p + 1 for p in model.parameters()])
    expected, gradients = penalty.value(), penalty.gradients()
    model.half()
    assert torch.isfinite(penalty.value()) and all(c.dtype == torch.float32 for c in penalty.curvature)
    torch.testing.assert_close(penalty.value(), expected, rtol=1e-2, atol=0)
    torch.testing.assert_close(penalty.gradients(), gradients, rtol=1e-2, atol=0)
    again = QuadraticPenalty(list(model.parameters()))
    again.load_state_dict(penalty.state_dict())
    torch.testing.assert_close(again.curvature, penalty.curvature, rtol=0, atol=0)


@pytest.mark.parametrize('dtype', [torch.float32, torch.bfloat16], ids=str)
def test_gsa_steps_on_the_penalty_of_a_network_in_any_precision(dtype):
    model = nn.Linear(4, 3).to(dtype)
    parameters = list(model.parameters())
    penalty = QuadraticPenalty(parameters)
    penalty.add(2.0, [torch.ones_like(p) for p in parameters], [torch.zeros_like(p) for p in parameters])
    optimizer = timm.optim.create_optimizer_v2(model, 'gsa', lr=0.1, class_counts=[3, 2, 1], num_groups=2)
    optimizer.set_penalty(penalty, alpha=0.0)
    optimizer.compute_grads(BatchClosure(
        model, nn.CrossEntropyLoss(), torch.randn(6, 4).to(dtype), torch.tensor([0, 1, 2, 0, 1, 2])))
    for p in model.parameters():
        torch.testing.assert_close(p.grad, 2 * p.detach(), rtol=1e-2, atol=1e-4)

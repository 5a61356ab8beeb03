import json

import pytest
import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.func import functional_call

from timm_lt import ClassDistribution
from timm_lt.evaluate.landscape import (
    filter_normalized_direction,
    gradient_cosine,
    hessian_trace,
    loss_line,
    loss_surface,
    mean_gradient,
    measure_landscape,
    sharpness,
    top_eigenvalue,
)
from timm_lt.evaluate.landscape.probe import split_losses, unchanged

COUNTS = [200, 150, 50, 5]
SPLITS = ClassDistribution(COUNTS).splits()


def tiny(seed=0):
    torch.manual_seed(seed)
    model = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Tanh(), nn.Linear(4, 4)).double()
    model.train()
    for _ in range(3):
        model(torch.randn(20, 3).double())  # statistics that are not the initial ones
    return model


def data(num_images=24, classes=4, seed=0):
    generator = torch.Generator().manual_seed(seed)
    input = torch.randn(num_images, 3, generator=generator, dtype=torch.float64)
    target = torch.arange(num_images) % classes
    return [(input[:10], target[:10]), (input[10:], target[10:])]


def all_of(batches):
    return torch.cat([x for x, _ in batches]), torch.cat([y for _, y in batches])


def exact_hessian(model, batches):
    input, target = all_of(batches)
    model.eval()
    names, shapes = zip(*[(n, p.shape) for n, p in model.named_parameters()])
    flat = torch.cat([p.detach().flatten() for p in model.parameters()])

    def loss(theta):
        parts = theta.split([s.numel() for s in shapes])
        weights = {n: p.view(s) for n, s, p in zip(names, shapes, parts)}
        return F.cross_entropy(functional_call(model, weights, input), target)

    return torch.autograd.functional.hessian(loss, flat)


def state(model):
    return {k: v.clone() for k, v in model.state_dict().items()}


def assert_same(model, before):
    for key, value in model.state_dict().items():
        assert torch.equal(value, before[key]), key


def test_top_eigenvalue_is_that_of_the_exact_hessian():
    model, batches = tiny(), data()
    values = torch.linalg.eigvalsh(exact_hessian(model, batches))
    found = top_eigenvalue(model, batches, iterations=300, tolerance=1e-12)
    assert found == pytest.approx(float(values[-1]), rel=1e-5)


def test_top_eigenvalue_is_the_most_positive_when_a_negative_one_is_larger():
    model, batches = tiny(), data()

    def flipped(output, target):
        return -F.cross_entropy(output, target, reduction='none')

    values = torch.linalg.eigvalsh(-exact_hessian(model, batches))
    assert abs(values[0]) > abs(values[-1])
    found = top_eigenvalue(model, batches, iterations=3000, tolerance=1e-13, loss=flipped)
    assert found == pytest.approx(float(values[-1]), rel=1e-3)


def test_trace_is_that_of_the_exact_hessian_within_its_error():
    model, batches = tiny(), data()
    found, error = hessian_trace(model, batches, samples=400)
    exact = float(exact_hessian(model, batches).trace())
    assert abs(found - exact) < 4 * error and error < 0.1 * abs(exact)
    # the error is the one that the Hessian itself predicts: var(v.Hv) = 2 * sum of squares off the diagonal
    hessian = exact_hessian(model, batches)
    predicted = (2 * (hessian - hessian.diag().diag()).square().sum() / 400).sqrt()
    assert error == pytest.approx(float(predicted), rel=0.25)


def test_losses_of_splits_are_means_over_their_images():
    model, batches = tiny(), data()
    input, target = all_of(batches)
    found = split_losses(model, batches, SPLITS)
    model.eval()
    values = F.cross_entropy(model(input), target, reduction='none').detach()
    assert found['all'] == pytest.approx(float(values.mean()))
    for name, mask in SPLITS.items():
        assert found[name] == pytest.approx(float(values[mask[target]].mean()))
    assert split_losses(model, data(classes=3), SPLITS)['few'] is None


def test_lines_and_surfaces_are_the_loss_itself():
    model, batches = tiny(), data()
    line = loss_line(model, batches, SPLITS, steps=5, radius=0.7, seed=3)
    surface = loss_surface(model, batches, SPLITS, steps=3, radius=0.7, seed=3)
    first, second = filter_normalized_direction(model, 3), filter_normalized_direction(model, 4)
    original = [p.detach().clone() for p in model.parameters()]

    def loss_at(a, b):
        moved = tiny()
        with torch.no_grad():
            for p, w, d, e in zip(moved.parameters(), original, first, second):
                p.copy_(w + a * d + b * e)
        return split_losses(moved, batches, SPLITS)

    assert line['steps'] == pytest.approx([-0.7, -0.35, 0, 0.35, 0.7])
    for name in SPLITS:
        assert line['loss'][name] == pytest.approx([loss_at(a, 0)[name] for a in line['steps']])
        expected = [[loss_at(a, b)[name] for b in surface['steps']] for a in surface['steps']]
        assert surface['loss'][name] == [pytest.approx(row) for row in expected]
    assert line['loss']['many'][2] == split_losses(model, batches, SPLITS)['many']


def test_directions_have_the_norm_of_each_filter_and_leave_biases():
    model = nn.Sequential(nn.Conv2d(3, 5, 3), nn.BatchNorm2d(5))
    direction = filter_normalized_direction(model, 0)
    assert torch.allclose(direction[0].flatten(1).norm(dim=1), model[0].weight.detach().flatten(1).norm(dim=1))
    assert all(not d.any() for d in direction[1:])
    assert not torch.equal(direction[0], filter_normalized_direction(model, 1)[0])


def test_sharpness_is_the_loss_one_ascent_step_away():
    model, batches = tiny(), data()
    input, target = all_of(batches)
    found = sharpness(model, batches, 0.1)
    model.eval()
    before = F.cross_entropy(model(input), target)
    gradient = torch.autograd.grad(before, list(model.parameters()))
    norm = torch.cat([g.flatten() for g in gradient]).norm()
    with torch.no_grad():
        for p, g in zip(model.parameters(), gradient):
            p += 0.1 * g / norm
        assert found == pytest.approx(float(F.cross_entropy(model(input), target) - before.detach()))
    assert found > 0 and sharpness(model, batches, 0.0) == 0


def test_gradients_and_their_cosines_match_autograd():
    model, batches = tiny(), data()
    parts = {'a': [(x[y < 2], y[y < 2]) for x, y in batches], 'b': [(x[y > 1], y[y > 1]) for x, y in batches], 'c': []}
    found = gradient_cosine(model, parts)
    model.eval()
    flat = {}
    for name in 'ab':
        input, target = all_of(parts[name])
        gradient = torch.autograd.grad(F.cross_entropy(model(input), target), list(model.parameters()))
        for mine, theirs in zip(mean_gradient(model, parts[name]), gradient):
            assert torch.allclose(mine, theirs)
        flat[name] = torch.cat([g.flatten() for g in gradient])
    assert found['a']['b'] == pytest.approx(float(F.cosine_similarity(flat['a'], flat['b'], dim=0)), abs=1e-6)
    assert found['a']['a'] == pytest.approx(1) and found['c']['a'] is None


def test_everything_is_put_back_bit_by_bit_also_after_an_error():
    model, batches = tiny(), data()
    model[1].eval()
    model[0].weight.grad = torch.ones_like(model[0].weight)
    before, modes = state(model), [m.training for m in model.modules()]
    result = measure_landscape(
        model, batches, COUNTS, line_steps=3, surface_steps=3, iterations=3, trace_samples=2, rho=0.1)
    assert_same(model, before)
    assert [m.training for m in model.modules()] == modes
    assert torch.equal(model[0].weight.grad, torch.ones_like(model[0].weight))
    json.dumps(result, allow_nan=False)
    with pytest.raises(RuntimeError, match='stop'), unchanged(model):
        with torch.no_grad():
            model[0].weight.add_(1)
            model[1].running_mean.zero_()
        raise RuntimeError('stop')
    assert_same(model, before)


def test_measurement_says_absent_for_a_split_without_images():
    model, batches = tiny(), data(classes=3)
    result = measure_landscape(
        model, batches, COUNTS, line_steps=2, surface_steps=0, iterations=2, trace_samples=1)
    for key in ('loss', 'sharpness', 'top_eigenvalue', 'trace'):
        assert result[key]['few'] is None and result[key]['many'] is not None
    assert set(result['line']['loss']) == {'many', 'medium'} and 'surface' not in result
    assert result['num_images'] == {'all': 24, 'many': 16, 'medium': 8, 'few': 0}


def test_hessian_of_a_split_uses_its_images_alone():
    model, batches = tiny(), data()
    few = [(x[y == 3], y[y == 3]) for x, y in batches]
    result = measure_landscape(
        model, batches, COUNTS, line_steps=0, surface_steps=0, iterations=300, trace_samples=1)
    values = torch.linalg.eigvalsh(exact_hessian(model, few))
    assert result['top_eigenvalue']['few'] == pytest.approx(float(values[-1]), rel=0.02)


def test_frozen_parameters_are_left_out_of_the_hessian():
    model, batches = tiny(), data()
    model[0].requires_grad_(False)
    frozen = sum(p.numel() for p in model[0].parameters())
    values = torch.linalg.eigvalsh(exact_hessian(model, batches)[frozen:, frozen:])
    assert top_eigenvalue(model, batches, iterations=300, tolerance=1e-12) == pytest.approx(float(values[-1]), rel=1e-5)


def test_networks_with_fused_attention_have_a_hessian():
    import timm
    model = timm.create_model(
        'vit_tiny_patch16_224', img_size=16, patch_size=8, embed_dim=12, depth=1, num_heads=2, num_classes=4)
    batches = [(torch.randn(4, 3, 16, 16), torch.arange(4))]
    assert top_eigenvalue(model, batches, iterations=3) > 0

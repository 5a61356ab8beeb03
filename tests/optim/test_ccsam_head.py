"""CC-SAM's closed forms against a loop over the classes, with per-class gradients from autograd."""

import math

import pytest
import torch
import torch.nn.functional as F

import timm_lt
from timm_lt.models import CosineClassifier
from timm_lt.optim.ccsam.perturbations import class_perturbations, cosine_perturbations

C, D = 7, 5
COUNTS = torch.tensor([300, 120, 40, 12, 5, 2, 1])


def batch(labels, seed=0, dtype=torch.float64):
    g = torch.Generator().manual_seed(seed)
    features = torch.randn(len(labels), D, generator=g, dtype=dtype)
    weight = torch.randn(C, D, generator=g, dtype=dtype) * 0.3
    bias = torch.randn(C, generator=g, dtype=dtype) * 0.1
    return features, torch.tensor(labels), weight, bias


def plain_step(features, labels, weight, bias, criterion, scale, ratio, variant):
    """Total loss and gradients, class by class."""
    leaves = [t.clone().requires_grad_() for t in (features, weight) + ((bias,) if bias is not None else ())]
    tensors = [weight] + ([bias] if bias is not None else [])
    k = sum(t.numel() for t in tensors)
    norm = torch.sqrt(sum(t.square().sum() for t in tensors))

    def logits(f, w, b=None):
        return f @ w.T if b is None else f @ w.T + b

    total = (1 - ratio) * criterion(logits(*leaves), labels, reduction='none').sum()
    for c in labels.unique().tolist():
        rows = labels == c
        free = [t.clone().requires_grad_() for t in tensors]
        mean = criterion(logits(features[rows], *free), labels[rows], reduction='none').mean()
        gradients = torch.autograd.grad(mean, free)
        joint = torch.sqrt(sum(g.square().sum() for g in gradients))
        eps = []
        for g in gradients:
            size = joint if variant == 'paper' else g.norm()
            rho = (norm / (2 * size)).sqrt() / (k * max(int(COUNTS[c]) - 1, 1)) ** 0.25
            eps.append(scale * math.sqrt(k) * rho * g / size if size > 0 else torch.zeros_like(g))
        moved = [p + e for p, e in zip(leaves[1:], eps)]
        total = total + ratio * criterion(logits(leaves[0][rows], *moved), labels[rows], reduction='none').sum()
    total = total / len(labels)
    return total.detach(), torch.autograd.grad(total, leaves)


def closed_form(features, labels, weight, bias, criterion, scale, ratio, variant):
    leaves = [t.clone().requires_grad_() for t in (features, weight) + ((bias,) if bias is not None else ())]
    z = F.linear(*leaves)
    values = criterion(z, labels, reduction='none')
    residuals, = torch.autograd.grad(values.sum(), z, retain_graph=True)
    p = class_perturbations(features, residuals, labels, COUNTS, weight, bias, scale=scale, variant=variant)
    shifted = criterion(z + p.shift(leaves[0], labels), labels, reduction='none')
    total = ((1 - ratio) * values + ratio * shifted).mean()
    return total.detach(), torch.autograd.grad(total, leaves)


LABELS = {
    'many classes': [0, 0, 1, 2, 0, 3, 1, 4, 5, 0, 1], 'one class': [2, 2, 2], 'one sample': [3],
    'classes of one image': [6, 6, 5, 0],
}


@pytest.mark.parametrize('labels', LABELS.values(), ids=LABELS.keys())
@pytest.mark.parametrize('with_bias', [True, False])
@pytest.mark.parametrize('variant', ['paper', 'released'])
def test_closed_form_matches_a_loop_over_classes(labels, with_bias, variant):
    features, labels, weight, bias = batch(labels)
    for name in ('balanced_softmax', 'class_balanced', 'ldam'):
        criterion = timm_lt.create_loss(name, class_counts=COUNTS)
        arguments = (features, labels, weight, bias if with_bias else None, criterion, 0.3, 0.4, variant)
        value, gradients = closed_form(*arguments)
        reference, reference_gradients = plain_step(*arguments)
        torch.testing.assert_close(value, reference, rtol=1e-10, atol=1e-12)
        for g, r in zip(gradients, reference_gradients):
            torch.testing.assert_close(g, r, rtol=1e-9, atol=1e-11)


def test_class_means_are_those_of_the_joint_batch():
    features, labels, weight, bias = batch([0, 1, 1, 2, 0, 2, 1, 3])
    residuals = torch.randn(8, C, dtype=torch.float64)
    whole = class_perturbations(features, residuals, labels, COUNTS, weight, bias, scale=1.0)
    shift = whole.shift(features, labels)
    part = whole.shift(features[2:5], labels[2:5])
    assert torch.allclose(part, shift[2:5])
    alone = class_perturbations(features[2:5], residuals[2:5], labels[2:5], COUNTS, weight, bias, scale=1.0)
    assert not torch.allclose(alone.shift(features[2:5], labels[2:5]), shift[2:5])


def test_class_without_gradient_is_not_perturbed_and_stays_finite():
    for dtype in (torch.float32, torch.float64):
        features, labels, weight, bias = batch([0, 0, 6, 6], dtype=dtype)
        residuals = torch.zeros(4, C, dtype=dtype)
        residuals[2:] = 1e-25 if dtype == torch.float32 else 0.0
        p = class_perturbations(features, residuals, labels, COUNTS, weight, bias, scale=1.0)
        assert torch.equal(p.shift(features, labels), torch.zeros(4, C, dtype=dtype))
        assert torch.isfinite(p.weight_radius).all()


def test_extreme_logits_are_finite_in_float32():
    features, labels, weight, bias = batch([0, 1, 2, 6, 6], dtype=torch.float32)
    value, gradients = closed_form(
        features * 80, labels, weight * 10, bias, timm_lt.create_loss('balanced_softmax', class_counts=COUNTS),
        1e-6, 0.5, 'paper')
    assert torch.isfinite(value) and all(torch.isfinite(g).all() for g in gradients)


def test_half_precision_inputs_are_computed_in_float32():
    features, labels, weight, bias = batch([0, 0, 1, 2], dtype=torch.float32)
    residuals = torch.randn(4, C)
    low = class_perturbations(features.bfloat16(), residuals.bfloat16(), labels, COUNTS, weight, bias, scale=1.0)
    assert low.residuals.dtype == low.weight_scale.dtype == torch.float32


def test_largest_intermediate_is_not_quadratic_in_classes():
    from torch.utils._python_dispatch import TorchDispatchMode

    sizes = []

    class Sizes(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            out = func(*args, **(kwargs or {}))
            sizes.extend(t.numel() for t in torch.utils._pytree.tree_leaves(out) if isinstance(t, torch.Tensor))
            assert func is not torch.ops.aten._local_scalar_dense.default, 'a host synchronisation'
            return out

    classes, dim, size = 500, 16, 8
    counts = torch.full((classes,), 10)
    features, weight = torch.randn(size, dim), torch.randn(classes, dim)
    labels, residuals = torch.randint(classes, (size,)), torch.randn(size, classes)
    with Sizes():
        p = class_perturbations(features, residuals, labels, counts, weight, torch.zeros(classes))
        p.shift(features, labels)
    assert max(sizes) <= classes * dim
    assert len(sizes) < 100


@pytest.mark.parametrize('labels', LABELS.values(), ids=LABELS.keys())
def test_closed_form_of_a_cosine_classifier_matches_a_loop_over_classes(labels):
    features, labels, weight, _ = batch(labels)
    head = CosineClassifier(D, C, 4.0).double()
    with torch.no_grad():
        head.weight.copy_(weight)
    features.requires_grad_()
    z = head(features)
    values = F.cross_entropy(z, labels, reduction='none')
    residuals, = torch.autograd.grad(values.sum(), z, retain_graph=True)
    p = cosine_perturbations(
        features.detach(), residuals, labels, COUNTS, head.weight.detach(), head.scale, scale=0.5)
    perturbed = F.cross_entropy(p.perturbed_logits(head, z, features, labels), labels, reduction='none')
    total = 0
    for c in labels.unique().tolist():
        rows = labels == c
        free = weight.clone().requires_grad_()

        def loss(f, w, rows=rows):
            z = 4.0 * F.normalize(f, dim=1) @ F.normalize(w, dim=1).T
            return F.cross_entropy(z, labels[rows], reduction='none')

        g, = torch.autograd.grad(loss(features[rows].detach(), free).mean(), free)
        k = weight.numel()
        rho = (weight.norm() / (2 * g.norm())).sqrt() / (k * max(int(COUNTS[c]) - 1, 1)) ** 0.25
        reference = loss(features[rows], head.weight + 0.5 * math.sqrt(k) * rho * g / g.norm())
        torch.testing.assert_close(perturbed[rows], reference, rtol=1e-9, atol=1e-11)
        total = total + reference.sum()
    leaves = [features, head.weight]
    for ours, theirs in zip(torch.autograd.grad(perturbed.sum(), leaves), torch.autograd.grad(total, leaves)):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)

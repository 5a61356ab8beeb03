"""Balanced contrastive learning: the loss against plain loops, and the three-view network."""

import copy
import math

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

import timm_lt
from timm_lt import create_loss
from timm_lt._registry import LOSSES
from timm_lt.losses import balanced_contrastive_loss, sample_losses
from timm_lt.models import BCLModel, BCLOutput
from timm_lt.optim import BatchClosure

COUNTS = [20, 6, 2, 1]
C = len(COUNTS)


def contrastive_batch(batch=7, dim=6, target=None):
    generator = torch.Generator().manual_seed(1)
    features = F.normalize(torch.randn(batch, 2, dim, generator=generator, dtype=torch.float64), dim=2)
    centers = F.normalize(torch.randn(C, dim, generator=generator, dtype=torch.float64), dim=1)
    target = torch.randint(C, (batch,), generator=generator) if target is None else target
    return features, centers, target


def plain_balanced_contrastive(features, centers, target, temperature):
    batch = len(target)
    points = [features[i, v] for v in range(2) for i in range(batch)] + list(centers)
    labels = [int(y) for _ in range(2) for y in target] + list(range(len(centers)))
    losses = []
    for a in range(2 * batch):
        denominator = 0.0
        for c in range(len(centers)):
            members = [k for k, y in enumerate(labels) if y == c and k != a]
            denominator = denominator + sum(
                torch.exp(points[a] @ points[k] / temperature) for k in members) / len(members)
        positives = [k for k, y in enumerate(labels) if y == labels[a] and k != a]
        losses.append(sum(
            torch.log(denominator) - points[a] @ points[k] / temperature for k in positives) / len(positives))
    return torch.stack([(losses[i] + losses[batch + i]) / 2 for i in range(batch)])


@pytest.mark.parametrize('target', [None, torch.zeros(7, dtype=torch.long), torch.arange(7) % C])
@pytest.mark.parametrize('temperature', [0.1, 0.5])
def test_balanced_contrastive_loss_matches_plain_loops(target, temperature):
    features, centers, target = contrastive_batch(target=target)
    expected = plain_balanced_contrastive(features, centers, target, temperature)
    got = balanced_contrastive_loss(features, centers, target, temperature, reduction='none')
    torch.testing.assert_close(got, expected)
    for reduction, value in (('mean', expected.mean()), ('sum', expected.sum())):
        torch.testing.assert_close(
            balanced_contrastive_loss(features, centers, target, temperature, reduction), value)


def test_one_image_has_its_prototype_and_other_view_as_positives():
    features, centers, target = contrastive_batch(batch=1)
    features.requires_grad_()
    values = balanced_contrastive_loss(features, centers, target, reduction='none')
    torch.testing.assert_close(values, plain_balanced_contrastive(features, centers, target, 0.1))
    assert bool(torch.isfinite(torch.autograd.grad(values.sum(), features)[0]).all())


def test_low_temperature_is_finite_in_float32():
    features, centers, target = contrastive_batch()
    features = features.float().requires_grad_()
    loss = balanced_contrastive_loss(features, centers.float(), target, temperature=0.005)
    assert bool(torch.isfinite(loss)) and bool(torch.isfinite(torch.autograd.grad(loss, features)[0]).all())


def test_bcl_loss_is_the_weighted_sum_of_both_parts():
    features, centers, target = contrastive_batch()
    logits = torch.randn(7, C, dtype=torch.float64)
    loss = create_loss('bcl', COUNTS, classification_weight=1.5, contrastive_weight=0.4, temperature=0.2)
    prior = torch.tensor([math.log(n / sum(COUNTS)) for n in COUNTS], dtype=torch.float64)
    expected = (
        1.5 * F.cross_entropy(logits + prior, target, reduction='none')
        + 0.4 * balanced_contrastive_loss(features, centers, target, 0.2, 'none'))
    output = BCLOutput(logits, features, centers)
    torch.testing.assert_close(loss(output, target, reduction='none'), expected)
    torch.testing.assert_close(loss(output, target), expected.mean())
    values, normalizer = sample_losses(loss, output, target)
    torch.testing.assert_close(values.sum() / normalizer, loss(output, target))


def test_bcl_loss_needs_three_views_in_training_and_plain_logits_in_evaluation():
    loss = create_loss('bcl', COUNTS)
    logits, target = torch.randn(5, C), torch.tensor([0, 1, 2, 3, 0])
    with pytest.raises(TypeError, match='BCLModel'):
        loss(logits, target)
    loss.eval()
    expected = 2 * create_loss('balanced_softmax', COUNTS)(logits, target)
    torch.testing.assert_close(loss(logits, target), expected)
    with pytest.raises(ValueError, match='class weights'):
        loss.set_class_weight([1.0] * C)


class TinyNet(nn.Module):
    """The part of timm's interface that a model needs here, with a BatchNorm; ``conv``: the classifier is 1x1."""

    def __init__(self, conv=False):
        super().__init__()
        self.stem = nn.Conv2d(3, 5, 3, padding=1)
        self.norm = nn.BatchNorm2d(5)
        self.fc = nn.Conv2d(5, C, 1) if conv else nn.Linear(5, C)

    def get_classifier(self):
        return self.fc

    def forward_features(self, x):
        return self.norm(self.stem(x)).relu()

    def forward_head(self, x, pre_logits=False):
        if isinstance(self.fc, nn.Linear):
            x = x.mean((2, 3))
            return x if pre_logits else self.fc(x)
        x = x.mean((2, 3), keepdim=True)
        return (x if pre_logits else self.fc(x)).flatten(1)

    def forward(self, x):
        return self.forward_head(self.forward_features(x))


def test_network_gives_the_views_in_order_and_all_views_share_one_batchnorm_pass():
    torch.manual_seed(0)
    net = TinyNet()
    model = BCLModel(net, projection_dim=4).double()
    views = torch.randn(6, 3, 3, 8, 8, dtype=torch.float64)
    output = model(views)
    assert [tuple(t.shape) for t in output] == [(6, C), (6, 2, 4), (C, 4)]
    assert int(net.norm.num_batches_tracked) == 1

    together = torch.cat([views[:, 0], views[:, 1], views[:, 2]])
    features = net.forward_features(together).mean((2, 3))
    torch.testing.assert_close(output.logits, net.fc(features[:6]))
    for v in (1, 2):
        expected = F.normalize(model.projection(features[6 * v:6 * (v + 1)]), dim=1)
        torch.testing.assert_close(output.features[:, v - 1], expected, check_dtype=False, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        output.prototypes, F.normalize(model.prototype_projection(net.fc.weight), dim=1), check_dtype=False,
        atol=1e-6, rtol=1e-5)


def test_classifier_that_is_a_convolution_gives_the_logits_and_prototypes_of_the_linear_one():
    torch.manual_seed(0)
    linear = BCLModel(TinyNet(), projection_dim=4).eval()
    conv = BCLModel(TinyNet(conv=True), projection_dim=4).eval()
    state = linear.state_dict()
    state['model.fc.weight'] = state['model.fc.weight'][:, :, None, None]
    conv.load_state_dict(state)
    views = torch.randn(2, 3, 3, 8, 8)
    for a, b in zip(conv(views), linear(views)):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(conv(views).logits, conv(views[:, 0]))


def test_classifier_is_that_of_the_model_and_its_layers_can_be_perturbed():
    model = BCLModel(TinyNet(), projection_dim=4)
    assert model.get_classifier() is model.model.fc
    loss = create_loss('bcl', COUNTS)
    options = dict(lr=0.1, class_counts=COUNTS, scale=0.1)
    closure = BatchClosure(model, loss, torch.randn(6, 3, 3, 8, 8), torch.tensor([0, 0, 1, 2, 3, 3]))
    state, gradients = copy.deepcopy(model.state_dict()), []
    for layers in ('classifier', 'model.fc*'):  # the same layers; there is no closed form with three views
        model.load_state_dict(state)
        optimizer = timm.optim.create_optimizer_v2(model, 'ccsam', layers=layers, **options)
        optimizer.compute_grads(closure)
        gradients.append([p.grad for p in model.parameters()])
        for _ in range(2):
            assert bool(torch.isfinite(optimizer.step(closure)))
    for a, b in zip(*gradients):
        torch.testing.assert_close(a, b)


def test_prototypes_train_the_classifier_and_both_heads():
    model = BCLModel(TinyNet(), projection_dim=4)
    loss = create_loss('bcl', COUNTS, classification_weight=0.0)
    loss(model(torch.randn(6, 3, 3, 8, 8)), torch.tensor([0, 0, 1, 2, 3, 3])).backward()
    without = [n for n, p in model.named_parameters() if p.grad is None or not p.grad.abs().sum() > 0]
    assert set(without) <= {'model.fc.bias', 'model.stem.bias'}, without


def test_plain_images_give_plain_logits_and_the_plain_model_is_exported():
    net = TinyNet()
    model = BCLModel(net).eval()
    images = torch.randn(2, 3, 8, 8)
    torch.testing.assert_close(model(images), net(images))
    assert model.plain_model() is net
    assert not any('projection' in k for k in model.plain_model().state_dict())


def test_any_timm_model_can_be_wrapped_and_learns_under_autocast():
    torch.manual_seed(0)
    model = BCLModel(timm.create_model('resnet10t', num_classes=C), projection_dim=8, hidden_dim=16)
    loss = create_loss('bcl', COUNTS)
    with torch.autocast('cpu', dtype=torch.bfloat16):
        output = model(torch.randn(3, 3, 3, 32, 32))
        value = loss(output, torch.tensor([0, 1, 3]))
    assert value.dtype == torch.float32 and bool(torch.isfinite(value))
    value.backward()


def test_bad_models_and_shapes_are_refused():
    with pytest.raises(ValueError, match='classifier'):
        BCLModel(timm.create_model('resnet10t', num_classes=0))
    model = BCLModel(TinyNet())
    with pytest.raises(ValueError, match='views'):
        model(torch.randn(2, 2, 3, 8, 8))


@pytest.mark.parametrize('name', [n for n in timm_lt.list_losses(views=True) if n != 'balpoe'])
def test_losses_declare_their_views_and_wrap_the_model(name):
    factory = LOSSES.info(name).factory
    model = timm.create_model('resnet20_cifar', num_classes=3)
    wrapped = factory.wrap_model(model)
    assert (factory.views > 1) == (wrapped is not model) == (name in ('bcl', 'proco'))
    if factory.views > 1:
        assert wrapped.plain_model() is model

"""Second stages: what is frozen, what is learned, and what is exported, against plain references."""

import math

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

import timm_lt
from timm_lt.models import use_cosine_classifier
from timm_lt.two_stage import classifier_inputs, create_second_stage, list_second_stages

COUNTS = [60, 20, 5, 1]


def make_model(cosine=False):
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=4)
    if cosine:
        use_cosine_classifier(model)
    with torch.no_grad():
        for m in model.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.running_mean.normal_()
                m.running_var.uniform_(0.5, 2)
    return model


def images(n=6, seed=1):
    return torch.randn(n, 3, 8, 8, generator=torch.Generator().manual_seed(seed))


def criterion_of(method):
    return nn.CrossEntropyLoss() if method.loss == 'ce' else timm_lt.create_loss(method.loss, class_counts=COUNTS)


def train(model, method, steps=3):
    """A few steps as the loop takes them."""
    x, y = images(), torch.tensor([0, 0, 1, 2, 3, 3])
    optimizer = torch.optim.SGD(method.param_groups(), lr=0.1)
    for step in range(steps):
        method.set_mode(model)
        loss = method(classifier_inputs(model, x), y, criterion_of(method), (step + 1) / steps)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        method.project()
    return loss


def backbone_state(model):
    return {k: v.clone() for k, v in model.state_dict().items() if not k.startswith(('fc', 'classifier', 'head'))}


TRAINED = ['ccsam', 'crt', 'disalign', 'h2t', 'los', 'lws', 'mislas', 'weight_balancing']


def test_every_second_stage_is_listed():
    assert list_second_stages() == sorted([*TRAINED, 'ncm', 'tau_norm'])
    with pytest.raises(ValueError, match='mislas'):
        create_second_stage('mislass', COUNTS)
    with pytest.raises(TypeError, match='rho'):
        create_second_stage('disalign', COUNTS, rhoo=1)


@pytest.mark.parametrize('name', TRAINED)
def test_training_leaves_the_backbone_bit_equal(name):
    model = make_model()
    method = create_second_stage(name, COUNTS)
    before = backbone_state(model)
    method.prepare(model)
    head_before = [p.clone() for p in method.trained_parameters()]
    assert not any(p.requires_grad for p in model.parameters() if not any(p is q for q in method.parameters()))
    loss = train(model, method)
    assert torch.isfinite(loss)
    assert any(not torch.equal(a, b) for a, b in zip(head_before, method.trained_parameters()))
    after = model.state_dict()
    moved = [k for k in before if not torch.equal(before[k], after[k])]
    if name in ('mislas', 'h2t'):
        assert moved and all(k.endswith(('running_mean', 'running_var', 'num_batches_tracked')) for k in moved)
    else:
        assert moved == []


@pytest.mark.parametrize('name', TRAINED)
def test_finished_model_gives_the_logits_of_the_head(name):
    model = make_model()
    method = create_second_stage(name, COUNTS)
    method.prepare(model)
    train(model, method)
    model.eval()
    x = images(seed=3)
    expected = method.logits(classifier_inputs(model, x))
    torch.testing.assert_close(model(x), expected)
    plain = method.finish(model)
    torch.testing.assert_close(model(x), expected, rtol=1e-5, atol=1e-6)
    assert plain == (name != 'disalign')
    assert all(p.requires_grad for p in model.parameters())
    if plain:
        fresh = timm.create_model('resnet20_cifar', num_classes=4)
        fresh.load_state_dict(model.state_dict())
        torch.testing.assert_close(fresh.eval()(x), expected, rtol=1e-5, atol=1e-6)


def test_crt_starts_from_a_new_classifier_and_lws_from_the_old_one():
    for name, same in (('crt', False), ('lws', True), ('mislas', True), ('disalign', True), ('ccsam', True),
                       ('h2t', True), ('los', False), ('weight_balancing', True)):
        model = make_model().eval()
        expected = model(images())
        create_second_stage(name, COUNTS).prepare(model)
        model.eval()
        assert torch.allclose(model(images()), expected, atol=1e-6) == same, name


@pytest.mark.parametrize('rho', [0.0, 0.5])
def test_h2t_takes_channels_from_images_as_frequent_as_in_training(rho):
    method = create_second_stage('h2t', COUNTS, rho=rho)
    target = torch.arange(4000) % 4  # a class-balanced batch
    features = torch.arange(4000.0)[:, None].repeat(1, 10)
    torch.manual_seed(0)
    fused = method.fuse(features, target)
    replaced = (fused != features).any(0)
    assert int(replaced.sum()) == 10 * rho
    if rho:
        donors = fused[:, replaced]
        assert bool((donors == donors[:, :1]).all()), 'one image gives all channels'
        drawn = torch.bincount(target[donors[:, 0].long()], minlength=4) / 4000
        torch.testing.assert_close(drawn, torch.tensor(COUNTS) / sum(COUNTS), rtol=0, atol=0.03)
    head = nn.Linear(10, 4)
    method.use_head(head)
    torch.manual_seed(0)
    loss = method(features, target, nn.CrossEntropyLoss(), 1.0)
    torch.testing.assert_close(loss, F.cross_entropy(head(fused), target))


def test_los_is_cross_entropy_with_strong_smoothing_and_no_weight_decay():
    model = make_model()
    method = create_second_stage('los', COUNTS, smoothing=0.9)
    method.prepare(model)
    x, y = torch.randn(6, 64), torch.tensor([0, 0, 1, 2, 3, 3])
    expected = F.cross_entropy(method.head(x), y, label_smoothing=0.9)
    torch.testing.assert_close(method(x, y, nn.CrossEntropyLoss(), 1.0), expected)
    assert float(method.normalizer(y, nn.CrossEntropyLoss())) == 6
    assert [group['weight_decay'] for group in method.param_groups()] == [0.0]


@pytest.mark.parametrize('max_norm', [0.25, None])
def test_weight_balancing_keeps_class_vectors_inside_the_ball(max_norm):
    model = make_model()
    with torch.no_grad():
        model.fc.weight.mul_(torch.tensor([[4.0], [3.0], [2.0], [1.0]]) / model.fc.weight.norm(dim=1, keepdim=True))
    method = create_second_stage('weight_balancing', COUNTS, max_norm=max_norm, weight_decay=0.3)
    method.prepare(model)
    before = model.fc.weight.detach().clone()
    method.project()
    norms = [1.75, 1.75, 1.75, 1.0] if max_norm else [4.0, 3.0, 2.0, 1.0]
    torch.testing.assert_close(model.fc.weight.norm(dim=1), torch.tensor(norms))
    torch.testing.assert_close(F.cosine_similarity(model.fc.weight, before), torch.ones(4))
    assert [group['weight_decay'] for group in method.param_groups()] == [0.3]
    if max_norm:
        train(model, method, steps=5)
        assert model.fc.weight.detach().norm(dim=1).max() < 1.7501


def test_weight_balancing_refuses_cosines():
    with pytest.raises(ValueError, match='linear classifier'):
        create_second_stage('weight_balancing', COUNTS).prepare(make_model(cosine=True))


def test_lws_learns_scales_only():
    model = make_model()
    weight = model.get_classifier().weight.clone()
    method = create_second_stage('lws', COUNTS)
    method.prepare(model)
    train(model, method)
    assert torch.equal(method.head.classifier.weight, weight)
    scale = method.head.class_scale.detach().clone()
    method.finish(model)
    torch.testing.assert_close(model.get_classifier().weight, weight * scale[:, None])


def test_scales_on_a_cosine_classifier_stay_a_module():
    model = make_model(cosine=True)
    method = create_second_stage('lws', COUNTS)
    method.prepare(model)
    train(model, method)
    model.eval()
    expected = model(images())
    assert not method.finish(model)
    assert torch.equal(model(images()), expected)


def test_mislas_classifier_has_its_own_learning_rate():
    method = create_second_stage('mislas', COUNTS, classifier_lr=0.2)
    method.prepare(make_model())
    scales, classifier = method.param_groups()
    assert 'lr_scale' not in scales and classifier['lr_scale'] == 0.2 and len(classifier['params']) == 2
    frozen = create_second_stage('mislas', COUNTS, classifier_lr=0, shift_batchnorm=False)
    model = make_model()
    frozen.prepare(model)
    assert len(frozen.param_groups()) == 1 and frozen.caches_features
    before = backbone_state(model)
    train(model, frozen)
    assert all(torch.equal(v, model.state_dict()[k]) for k, v in before.items())


def test_disalign_follows_its_equations():
    model = make_model()
    method = create_second_stage('disalign', COUNTS, rho=0.7)
    method.prepare(model)
    head = method.head
    with torch.no_grad():
        head.magnitude.normal_()
        head.margin.normal_()
    features, target = classifier_inputs(model, images()), torch.tensor([0, 1, 2, 3, 3, 0])
    z = F.linear(features, head.classifier.weight, head.classifier.bias)
    gate = (features @ head.gate.weight.T + head.gate.bias).sigmoid()
    s = gate * (head.magnitude * z + head.margin) + (1 - gate) * z
    torch.testing.assert_close(method.logits(features), s)
    weight = torch.tensor([(sum(COUNTS) / n) ** 0.7 for n in COUNTS])
    reference = F.cross_entropy(s, target, weight=weight)
    torch.testing.assert_close(method(features, target, nn.CrossEntropyLoss(), 0.5), reference)


def test_ncm_predicts_the_nearest_class_mean():
    x, y = torch.randn(30, 64), torch.arange(30) % 4
    test = torch.randn(50, 64)
    means = torch.stack([x[y == c].mean(0) for c in range(4)])
    nearest = {
        'euclidean': torch.cdist(test, means).argmin(1),
        'cosine': (F.normalize(test, dim=1) @ F.normalize(means, dim=1).T).argmax(1),
    }
    for metric, expected in nearest.items():
        for cosine in (False, True):
            if cosine and metric == 'euclidean':
                continue
            model = make_model(cosine)
            method = create_second_stage('ncm', COUNTS, metric=metric)
            method.prepare(model)
            method.fit(x, y)
            assert torch.equal(method.logits(test).argmax(1), expected)
            assert method.finish(model)
    with pytest.raises(ValueError, match='bias'):
        create_second_stage('ncm', COUNTS, metric='euclidean').prepare(make_model(cosine=True))


def test_tau_norm_chooses_tau_on_validation_features_only():
    model = make_model()
    layer = model.get_classifier()
    weight = layer.weight.detach().clone()
    method = create_second_stage('tau_norm', COUNTS)
    method.prepare(model)
    val, labels = torch.randn(40, 64), torch.arange(40) % 4
    with pytest.raises(ValueError, match='validation'):
        method.fit(torch.randn(5, 64), torch.zeros(5, dtype=torch.int64))
    chosen = method.fit(torch.randn(5, 64), torch.zeros(5, dtype=torch.int64), val, labels)

    def balanced(tau):
        predicted = (val @ (weight / weight.norm(dim=1, keepdim=True) ** tau).T).argmax(1)
        return sum(float((predicted[labels == c] == c).double().mean()) for c in range(4)) / 4

    best = max(balanced(t / 10) for t in range(21))
    assert balanced(chosen['tau']) == pytest.approx(best)
    torch.testing.assert_close(layer.weight, weight / weight.norm(dim=1, keepdim=True) ** chosen['tau'])
    with pytest.raises(ValueError, match='cosine'):
        create_second_stage('tau_norm', COUNTS).prepare(make_model(cosine=True))


@pytest.mark.parametrize('variant', ['paper', 'released'])
@pytest.mark.parametrize('cosine', [False, True])
def test_ccsam_loss_matches_adversarial_features_from_autograd(variant, cosine):
    model = make_model(cosine).double()
    method = create_second_stage('ccsam', COUNTS, variant=variant, noise=0.4, max_share=0.6)
    method.prepare(model)
    head, target = method.head, torch.tensor([0, 0, 1, 2, 3, 3])
    f = torch.randn(6, 64, dtype=torch.float64).requires_grad_()
    gradients, = torch.autograd.grad(F.cross_entropy(head(f), target, reduction='sum'), f)
    moved, strength = [], []
    for i, c in enumerate(target.tolist()):
        norm = gradients[i].norm() if variant == 'paper' else gradients[target == c].norm()
        strength.append(1.0 if variant == 'paper' else math.log(60 / COUNTS[c] + 0.01) / 2)
        moved.append(f[i].detach() + 0.4 * strength[-1] * gradients[i] / norm)
    clean = F.cross_entropy(head(f.detach()), target)
    adversarial = F.cross_entropy(head(torch.stack(moved)), target, reduction='none')
    adversarial = (adversarial * torch.tensor(strength)).mean()
    for progress, share in ((0.25, 0.25), (1.0, 0.6)):
        reference = (1 - share) * clean + share * adversarial
        total = method(f.detach(), target, nn.CrossEntropyLoss(), progress)
        torch.testing.assert_close(total, reference)
        ours = torch.autograd.grad(total, head.weight)[0]
        torch.testing.assert_close(ours, torch.autograd.grad(reference, head.weight, retain_graph=True)[0])


def test_ccsam_with_a_right_and_certain_sample_is_finite():
    method = create_second_stage('ccsam', COUNTS)
    model = make_model()
    method.prepare(model)
    with torch.no_grad():
        method.head.weight.zero_()
    assert torch.isfinite(method(torch.randn(3, 64), torch.tensor([0, 1, 1]), nn.CrossEntropyLoss(), 1.0))


def test_models_without_one_classifier_are_refused():
    with pytest.raises(ValueError, match='classifier'):
        create_second_stage('crt', COUNTS).prepare(timm.create_model('resnet20_cifar', num_classes=0))
    with pytest.raises(ValueError, match='num_classes=4'):
        create_second_stage('crt', COUNTS).prepare(timm.create_model('resnet20_cifar', num_classes=5))

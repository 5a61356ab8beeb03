import pytest
import timm
import torch
import torch.nn as nn

from timm_lt.models import CosineClassifier, cosine_network_args, use_cosine_classifier


@pytest.mark.parametrize('scale', [1.0, 16.0])
def test_cosine_classifier_matches_naive_loop_in_float64(scale):
    head = CosineClassifier(6, 4, scale=scale, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    out = head(x)
    for i in range(5):
        for c in range(4):
            f, w = x[i], head.weight[c]
            expected = scale * (f @ w) / (f @ f).sqrt() / (w @ w).sqrt()
            torch.testing.assert_close(out[i, c], expected)


def test_cosine_classifier_ignores_the_length_of_features_and_class_vectors():
    head = CosineClassifier(6, 4, dtype=torch.float64)
    x = torch.randn(5, 6, dtype=torch.float64)
    before = head(x)
    with torch.no_grad():
        head.weight.mul_(torch.tensor([[0.5], [1.0], [3.0], [10.0]]))
    torch.testing.assert_close(head(7 * x), before)


def test_zero_features_give_finite_output_and_gradient():
    head = CosineClassifier(6, 4)
    x = torch.zeros(2, 6, requires_grad=True)
    out = head(x)
    out.sum().backward()
    assert torch.isfinite(out).all() and torch.isfinite(x.grad).all() and torch.isfinite(head.weight.grad).all()


def test_learnable_scale_is_trained_and_saved():
    head = CosineClassifier(6, 4, scale=5.0, learnable=True)
    assert head.scale.item() == pytest.approx(5.0)
    head(torch.randn(3, 6)).square().sum().backward()
    assert head.log_scale.grad.abs() > 0
    with torch.no_grad():
        head.log_scale.add_(1)
    other = CosineClassifier(6, 4, scale=5.0, learnable=True)
    other.load_state_dict(head.state_dict())
    assert other.scale.item() == pytest.approx(head.scale.item())
    assert list(CosineClassifier(6, 4).state_dict()) == ['weight']


@pytest.mark.parametrize('scale', [0, -1.0, float('inf')])
def test_scale_must_be_positive(scale):
    with pytest.raises(ValueError, match='scale must be'):
        CosineClassifier(6, 4, scale=scale)


@pytest.mark.parametrize('name, size, where', [
    ('test_resnet', 64, 'fc'), ('test_vit', 160, 'head'), ('test_convnext', 64, 'head.fc'),
    ('resnet20_cifar', 32, 'fc'), ('resnetv2_50', 32, 'head.fc'), ('dla34', 32, 'fc'),  # the last two: 1x1 convolutions
])
def test_use_cosine_classifier_works_on_any_timm_model(name, size, where):
    model = timm.create_model(name, num_classes=5).eval()
    assert use_cosine_classifier(model, scale=3.0) is model
    head, state = model.get_classifier(), {k: v.clone() for k, v in model.state_dict().items()}
    assert isinstance(head, CosineClassifier) and model.get_submodule(where) is head
    x = torch.randn(2, 3, size, size)
    with torch.no_grad():
        logits = model(x)
        assert logits.shape == (2, 5) and logits.abs().max() <= 3.0 + 1e-4
        hidden = model.forward_head(model.forward_features(x), pre_logits=True)
        torch.testing.assert_close(head(hidden), logits)
        assert use_cosine_classifier(model, scale=3.0)(x).shape == (2, 5)  # once more
        model.load_state_dict(state)
    twin = use_cosine_classifier(timm.create_model(name, num_classes=5), scale=3.0).eval()
    twin.load_state_dict(model.state_dict())
    with torch.no_grad():
        torch.testing.assert_close(twin(x), logits)
    model.reset_classifier(4)
    assert model(x).shape == (2, 4)


def test_use_cosine_classifier_keeps_dtype_and_mode():
    model = timm.create_model('resnet20_cifar', num_classes=5).double().eval()
    head = use_cosine_classifier(model).get_classifier()
    assert head.weight.dtype == torch.float64 and not head.training


def test_cosine_network_is_the_network_with_the_classifier_and_reloads_from_a_folder(tmp_path):
    from timm.models import save_for_hf
    args = dict(network='test_resnet', cosine_scale=3.0, num_classes=5, in_chans=1)
    model = timm.create_model('cosine_network', **args).eval()
    assert isinstance(model.get_classifier(), CosineClassifier) and model.num_classes == 5
    save_for_hf(model, tmp_path)
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.equal(again(x), model(x)) and again(x).abs().max() <= 3.0 + 1e-4
    other = timm.create_model(f'local-dir:{tmp_path}', pretrained=True, num_classes=4)
    assert torch.equal(other.conv1[0].weight, model.conv1[0].weight) and other(x).shape == (2, 4)


@pytest.fixture(scope='module')
def saved(tmp_path_factory):
    """A folder of a trained ``cosine_network``, and the network."""
    folder = tmp_path_factory.mktemp('saved')
    model = timm.create_model(
        'cosine_network', network='test_resnet', cosine_scale=3.0, learnable_scale=True, num_classes=5).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn_like(p), alpha=0.01)
    timm.models.save_for_hf(model, folder)
    return f'local-dir:{folder}', model


@torch.no_grad()
def test_saved_cosine_network_without_classifier_gives_its_features(saved):
    source, model = saved
    x = torch.randn(2, 3, 32, 32)
    bare = timm.create_model(source, pretrained=True, num_classes=0).eval()
    assert isinstance(bare.get_classifier(), nn.Identity) and bare.num_classes == 0
    torch.testing.assert_close(bare(x), model.forward_head(model.forward_features(x), pre_logits=True))
    bare.reset_classifier(4)
    head = bare.get_classifier()
    assert isinstance(head, CosineClassifier) and head.log_scale is not None and bare(x).shape == (2, 4)


@torch.no_grad()
@pytest.mark.parametrize('feature_cls', ['list', 'getter'])
def test_saved_cosine_network_gives_intermediate_features(saved, feature_cls):
    source, model = saved
    x = torch.randn(2, 3, 32, 32)
    features = timm.create_model(source, pretrained=True, features_only=True, feature_cls=feature_cls).eval()(x)
    expected = model.forward_intermediates(x, intermediates_only=True)
    for found, tap in zip(features, expected, strict=True):
        torch.testing.assert_close(found, tap)


def test_hub_folder_of_a_cosine_network_names_the_inner_network():
    assert cosine_network_args(timm.create_model('cosine_network', network='test_resnet')) == {}
    changed = use_cosine_classifier(timm.create_model('test_resnet', num_classes=5), scale=2.0)
    assert cosine_network_args(changed) == {'network': 'test_resnet', 'cosine_scale': 2.0, 'learnable_scale': False}


def test_cosine_network_refuses_several_classifiers():
    with pytest.raises(ValueError, match='exactly one linear classifier.*got Linear and Linear'):
        timm.create_model('cosine_network', network='deit_tiny_distilled_patch16_224', num_classes=5)


def test_use_cosine_classifier_refuses_a_model_without_a_linear_classifier():
    with pytest.raises(ValueError, match='exactly one linear classifier'):
        use_cosine_classifier(timm.create_model('resnet20_cifar', num_classes=0))
    with pytest.raises(ValueError, match='exactly one linear classifier'):
        use_cosine_classifier(nn.Sequential(nn.Linear(2, 2)))

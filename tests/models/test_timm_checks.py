"""timm's own checks of a model, for every network of this package: forward, backward, default cfg, features, export."""

import copy
import pickle

import pytest
import timm
import torch
import torch.nn as nn
from timm.layers import set_scriptable
from timm.models import FeatureGraphNet

import timm_lt
from timm_lt.models import CosineClassifier

NETWORKS = {
    'resnet20': ('resnet20_cifar', {}),
    'resnet20 cosine': ('resnet20_cifar', {'cosine_scale': 8.0}),
    'resnet32': ('resnet32_cifar', {}),
    'resnet32 x4': ('resnet32_cifar_x4', {}),
    'resnet34': ('resnet34_cifar', {}),
    'resnet34 cosine': ('resnet34_cifar', {'cosine_scale': 8.0}),
    'cosine resnet': ('cosine_network', {'network': 'test_resnet'}),
    'cosine resnet20': ('cosine_network', {'network': 'resnet20_cifar', 'learnable_scale': True}),
    'cosine vit': ('cosine_network', {'network': 'test_vit'}),
    'experts resnet20': ('experts_network', {'network': 'resnet20_cifar', 'num_experts': 2}),
    'experts resnet': ('experts_network', {'network': 'test_resnet', 'cosine_scale': 8.0}),
    'adaptformer vit': ('adaptformer_network', {'network': 'test_vit', 'cosine_scale': 25.0}),
}
CONVOLUTIONAL = [n for n in NETWORKS if 'vit' not in n]


def create(network, **kwargs):
    name, own = NETWORKS[network]
    return timm.create_model(name, **own, **kwargs)


def images(model, n=2):
    cfg = model.default_cfg
    size = cfg['input_size'] if cfg.get('fixed_input_size') else (3, 32, 32)
    return torch.randn(n, *size)


def test_every_network_is_checked():
    assert {name for name, _ in NETWORKS.values()} == set(timm_lt.list_networks())


@pytest.mark.parametrize('network', NETWORKS)
def test_backward_gives_every_parameter_a_gradient(network):
    model = create(network, num_classes=42).train()
    logits = model(images(model))
    assert logits.shape == (2, 42)
    logits.mean().backward()
    assert [n for n, p in model.named_parameters() if p.grad is None] == []
    assert logits.isfinite().all()


@pytest.mark.parametrize('network', NETWORKS)
def test_default_cfg_names_layers_and_sizes(network):
    model = create(network).eval()
    cfg, state, x = model.default_cfg, model.state_dict(), images(model)
    assert cfg['num_classes'] == model.num_classes
    assert cfg['first_conv'] + '.weight' in state and cfg['classifier'] + '.weight' in state
    assert model.get_submodule(model.get_classifier(name_only=True) if 'vit' not in network else 'head') \
        is model.get_classifier()
    with torch.no_grad():
        hidden = model.forward_head(model.forward_features(x), pre_logits=True)
        assert hidden.shape == (2, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), model(x))
        model.reset_classifier(0)
        assert isinstance(model.get_classifier(), nn.Identity) and model.num_classes == 0
        torch.testing.assert_close(model(x), hidden)
        if 'vit' not in network:
            model.reset_classifier(0, '')
            reduction = model.feature_info[-1]['reduction']
            assert model(x).shape == (2, model.num_features, x.shape[2] // reduction, x.shape[3] // reduction)


@pytest.mark.parametrize('network', [n for n in NETWORKS if 'adaptformer' not in n])  # hooks are no TorchScript
def test_torchscript_gives_the_same_logits(network):
    with set_scriptable(True):
        model = create(network, num_classes=5).eval()
    x = images(model)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(x), model(x))


@pytest.mark.parametrize('network', NETWORKS)
def test_exported_graph_takes_any_batch_size(network):
    model = create(network, num_classes=5).eval()
    batch = torch.export.Dim('batch', min=2, max=64)
    with torch.no_grad():
        graph = torch.export.export(model, (images(model),), dynamic_shapes=({0: batch},)).module()
        x = images(model, 3)
        torch.testing.assert_close(graph(x), model(x))


@pytest.mark.parametrize('network', NETWORKS)
def test_copies_and_pickles_keep_weights_and_kind_of_classifier(network):
    model = create(network, num_classes=5).eval()
    kind, x = type(model.get_classifier()), images(model)
    for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
        assert type(twin) is type(model) and torch.equal(twin(x), model(x))
        twin.reset_classifier(3)
        assert type(twin.get_classifier()) is kind and twin(x).shape == (2, 3)
    assert model(x).shape == (2, 5)


@pytest.mark.parametrize('network', NETWORKS)
def test_grad_checkpointing_gives_the_same_gradient(network):
    model = create(network, num_classes=5).eval()
    x, gradients = images(model), []
    for enable in (False, True):
        model.set_grad_checkpointing(enable)
        model.zero_grad()
        model(x).logsumexp(1).sum().backward()
        gradients.append([p.grad.clone() for p in model.parameters()])
    torch.testing.assert_close(*gradients)


@pytest.mark.parametrize('feature_cls', ['list', 'getter', 'fx'])
@pytest.mark.parametrize('network', [n for n in CONVOLUTIONAL if 'experts' not in n])  # refused
def test_features_only_gives_every_stage(network, feature_cls):
    model = create(network, features_only=True, feature_cls=feature_cls).eval()
    assert (feature_cls == 'fx') == isinstance(model, FeatureGraphNet)
    with torch.no_grad():
        features = model(torch.randn(2, 3, 32, 32))
    assert len(features) >= 4 and all(f.isfinite().all() for f in features)
    assert [f.shape[1] for f in features] == model.feature_info.channels()
    assert [32 // f.shape[-1] for f in features] == model.feature_info.reduction()
    assert not any(isinstance(m, CosineClassifier) for m in model.modules())


@pytest.mark.parametrize('network', NETWORKS)
def test_forward_intermediates_end_with_the_features(network):
    model = create(network, num_classes=5).eval()
    x = images(model)
    with torch.no_grad():
        final, taps = model.forward_intermediates(x)
        torch.testing.assert_close(final, model.forward_features(x))
        last = model.forward_intermediates(x, indices=1, intermediates_only=True)
    torch.testing.assert_close(last[-1], taps[-1])

import pytest
import timm
import torch
import torch.nn as nn
import torch.nn.functional as F

import timm_lt
from timm_lt.models import CifarResNet, CosineClassifier

PARAMETERS = {  # at 100 classes
    'resnet20_cifar': 275_572, 'resnet32_cifar': 470_004, 'resnet32_cifar_x4': 7_409_316, 'resnet34_cifar': 21_328_292,
}
SMALL = ('resnet20_cifar', 'resnet32_cifar')


def images(n=2, size=32):
    return torch.randn(n, 3, size, size)


def test_networks_are_listed_by_timm():
    assert timm_lt.list_networks() == sorted([*PARAMETERS, 'adaptformer_network', 'cosine_network', 'experts_network'])
    assert set(PARAMETERS) <= set(timm.list_models('*cifar*'))


@pytest.mark.parametrize('name', PARAMETERS)
def test_network_has_the_published_size(name):
    with torch.device('meta'):
        model = timm.create_model(name, num_classes=100)
    assert sum(p.numel() for p in model.parameters()) == PARAMETERS[name]


@pytest.mark.parametrize('name', PARAMETERS)
def test_default_cfg_describes_the_network(name):
    model = timm.create_model(name).eval()
    cfg = model.default_cfg
    assert cfg['architecture'] == name and cfg['num_classes'] == model.num_classes == 100
    state = model.state_dict()
    assert cfg['first_conv'] + '.weight' in state and cfg['classifier'] + '.weight' in state
    x = torch.randn(1, *cfg['input_size'])
    with torch.no_grad():
        features = model.forward_features(x)
        assert features.shape == (1, model.num_features, *cfg['pool_size'])
        hidden = model.forward_head(features, pre_logits=True)
        assert hidden.shape == (1, model.head_hidden_size)
        torch.testing.assert_close(model.get_classifier()(hidden), model(x))
    config = timm.data.resolve_model_data_config(model)
    assert config['input_size'] == (3, 32, 32) and config['crop_pct'] == 1.0 and config['mean'] == cfg['mean']


@pytest.mark.parametrize('name', PARAMETERS)
def test_reset_classifier_follows_timm(name):
    model = timm.create_model(name, num_classes=7).eval()
    assert isinstance(model.get_classifier(), nn.Linear) and model.get_classifier(name_only=True) == 'fc'
    x = images(1)
    assert model(x).shape == (1, 7)
    model.reset_classifier(3)
    assert model(x).shape == (1, 3) and model.num_classes == 3
    model.reset_classifier(0)
    assert model(x).shape == (1, model.num_features)
    model.reset_classifier(0, '')
    assert model(x).shape == (1, model.num_features, *model.default_cfg['pool_size'])


def test_both_kinds_of_features_only_agree():
    a = timm.create_model('resnet20_cifar', features_only=True, out_indices=(1, 2)).eval()
    b = timm.create_model('resnet20_cifar', features_only=True, out_indices=(1, 2), feature_cls='getter').eval()
    b.model.load_state_dict(a.state_dict(), strict=False)
    x = images()
    for fa, fb in zip(a(x), b(x)):
        torch.testing.assert_close(fa, fb)
    assert len(b.model.layer3) == 0  # pruned


def test_forward_intermediates_ends_with_forward_features():
    model = timm.create_model('resnet20_cifar').eval()
    x = images()
    out, taps = model.forward_intermediates(x)
    torch.testing.assert_close(out, model.forward_features(x))
    torch.testing.assert_close(taps[-1], out)
    assert len(taps) == 4
    last = model.forward_intermediates(x, indices=[-1], intermediates_only=True)
    torch.testing.assert_close(last[0], out)
    with pytest.raises(ValueError, match='feature indices'):
        model.forward_intermediates(x, indices=[4])


def test_resnet20_matches_the_paper_written_out():
    model = CifarResNet(3, num_classes=10).eval()
    p = dict(model.named_parameters())

    def norm(x):
        return x / (1 + 1e-5) ** 0.5  # fresh BatchNorm in evaluation mode

    x = images()
    y = F.relu(norm(F.conv2d(x, p['conv1.weight'], padding=1)))
    for stage in (1, 2, 3):
        for block in range(3):
            prefix = f'layer{stage}.{block}.'
            stride = 2 if stage > 1 and block == 0 else 1
            z = F.relu(norm(F.conv2d(y, p[prefix + 'conv1.weight'], stride=stride, padding=1)))
            z = norm(F.conv2d(z, p[prefix + 'conv2.weight'], padding=1))
            shortcut = torch.zeros_like(z)
            first = (z.shape[1] - y.shape[1]) // 2
            shortcut[:, first:first + y.shape[1]] = y[:, :, ::stride, ::stride]
            y = F.relu(z + shortcut)
    expected = F.linear(y.mean((2, 3)), p['fc.weight'], p['fc.bias'])
    torch.testing.assert_close(model(x), expected, rtol=1e-4, atol=1e-5)


def test_resnet34_stem_keeps_the_resolution():
    model = timm.create_model('resnet34_cifar')
    assert model.conv1.kernel_size == (3, 3) and model.conv1.stride == (1, 1)
    assert not any(isinstance(m, nn.MaxPool2d) for m in model.modules())


@pytest.mark.parametrize('name', SMALL + ('resnet34_cifar',))
def test_groupnorm_network_has_no_coupling_between_samples(name):
    model = timm.create_model(name, norm_layer='groupnorm').train()
    assert not any(isinstance(m, nn.BatchNorm2d) for m in model.modules())
    x = images(3)
    with torch.no_grad():
        torch.testing.assert_close(model(x)[:1], model(x[:1]), rtol=1e-4, atol=1e-4)


def test_norm_layer_takes_timm_names_and_refuses_others():
    assert isinstance(timm.create_model('resnet20_cifar', norm_layer='layernorm2d').bn1, timm.layers.LayerNorm2d)
    assert isinstance(timm.create_model('resnet20_cifar', norm_layer=nn.InstanceNorm2d).bn1, nn.InstanceNorm2d)
    with pytest.raises(ValueError, match='norm_layer'):
        timm.create_model('resnet20_cifar', norm_layer='nonorm')


def test_drop_rate_drops_features_in_training_only():
    model = timm.create_model('resnet20_cifar', drop_rate=0.5)
    features = torch.ones(4, 64, 8, 8)
    hidden = model.train().forward_head(features, pre_logits=True)
    assert (hidden == 0).any() and (hidden == 2).any()
    assert (model.eval().forward_head(features, pre_logits=True) == 1).all()


@pytest.mark.parametrize('name', PARAMETERS)
def test_layer_groups_cover_every_parameter(name):
    from timm.models import group_parameters
    with torch.device('meta'):
        model = timm.create_model(name)
    groups = group_parameters(model, model.group_matcher(coarse=False))
    assert sum(len(g) for g in groups.values()) == len(list(model.parameters()))
    blocks = {'resnet20_cifar': 9, 'resnet32_cifar': 15, 'resnet32_cifar_x4': 15, 'resnet34_cifar': 16}[name]
    assert len(groups) == 1 + blocks + 1  # stem, blocks, head


@pytest.mark.parametrize('name', SMALL + ('resnet34_cifar',))
def test_cosine_scale_builds_and_keeps_a_cosine_classifier(name):
    model = timm.create_model(name, num_classes=5, cosine_scale=8.0)
    assert isinstance(model.get_classifier(), CosineClassifier)
    model.reset_classifier(4)
    assert isinstance(model.get_classifier(), CosineClassifier) and model.get_classifier().out_features == 4
    assert model(images()).abs().max() <= 8.0 + 1e-4


def test_saved_folder_with_cosine_scale_reloads_through_timm(tmp_path):
    from timm.models import save_for_hf
    args = dict(num_classes=5, cosine_scale=8.0, norm_layer='groupnorm')
    model = timm.create_model('resnet20_cifar', **args).eval()
    save_for_hf(model, tmp_path, model_args=dict(cosine_scale=8.0, norm_layer='groupnorm'))
    again = timm.create_model(f'local-dir:{tmp_path}', pretrained=True).eval()
    x = images()
    torch.testing.assert_close(again(x), model(x), rtol=0, atol=0)

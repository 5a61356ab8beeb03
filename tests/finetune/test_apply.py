"""Fine-tuning methods on tiny random networks: what is trained, what stays, and what is left after a merge."""

import copy
import re

import pytest
import timm
import torch
import torch.nn as nn
from safetensors.torch import save_file

from timm_lt import finetune
from timm_lt.finetune.head_init import initialize_head
from timm_lt.models import CosineClassifier, use_cosine_classifier

TINY = {
    'test_vit': {'img_size': 32, 'patch_size': 8},
    'vit_small_patch16_dinov3': {
        'embed_dim': 24, 'depth': 2, 'num_heads': 2, 'img_size': 32, 'init_values': 0.5},
    'swin_tiny_patch4_window7_224': {
        'embed_dim': 12, 'depths': (1, 2), 'num_heads': (1, 2), 'img_size': 32, 'window_size': 4},
    'test_convnext': {'ls_init_value': 1.0}, 'test_resnet': {'zero_init_last': False}, 'resnet20_cifar': {},
}
CLASSIFIER = re.compile(r'^(head|fc)(\.fc)?\.(weight|bias)$')


def network(name, **kwargs):
    torch.manual_seed(0)
    return timm.create_model(name, num_classes=5, **TINY.get(name, {}), **kwargs)


def batch(size=4):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(size, 3, 32, 32, generator=generator), torch.arange(size) % 5


def train(model, steps=2):
    optimizer = timm.optim.create_optimizer_v2(model, 'momentum', lr=0.1, weight_decay=0.01)
    input, target = batch()
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(input), target).backward()
        optimizer.step()
    return optimizer


@pytest.mark.parametrize('name', TINY)
@pytest.mark.parametrize('method', ['full', 'head', 'bias', 'norm', 'lora', 'adaptformer', 'blocks:1'])
def test_named_parameters_are_trained_and_all_others_stay_bit_equal(name, method):
    model = network(name)
    input, _ = batch()
    before, expected = copy.deepcopy(model.state_dict()), model.eval()(input)
    if method == 'adaptformer' and name in ('test_convnext', 'test_resnet', 'resnet20_cifar'):
        with pytest.raises(ValueError, match='adaptformer cannot adapt'):
            finetune.apply(model, method)
        assert all(p.requires_grad for p in model.parameters())
        return
    assert finetune.apply(model, method) is model
    assert torch.equal(model(input), expected), 'nothing changes before the first step'
    tuned = finetune.tuned_parameters(model)
    optimizer = train(model)
    assert {id(p) for p in optimizer.state} == {id(p) for p in tuned.values()}
    after = model.state_dict()
    moved = {key for key, value in before.items() if not torch.equal(value, after[key])}
    body = {key for key in moved if not CLASSIFIER.match(key)}
    parameters = {key for key, _ in model.named_parameters()}
    if method == 'full':
        assert body >= {key for key in before if key.endswith('weight') and not CLASSIFIER.match(key)}
    elif method in ('head', 'lora', 'adaptformer'):
        assert not body
    elif method == 'bias':
        assert body and all(key.endswith('bias') for key in body)
    elif method == 'norm':
        layers = [type(model.get_submodule(key.rpartition('.')[0])).__name__ for key in body]
        assert layers and all('norm' in kind.lower() for kind in layers)
    else:
        assert body and not any(key.startswith(('patch_embed', 'stem', 'conv1', 'blocks.0')) for key in body)
    if method not in ('full', 'blocks:1'):
        assert moved <= set(tuned) and body <= parameters, 'no running statistics'
    added = set(after) - set(before)
    assert bool(added) == (method in ('lora', 'adaptformer'))
    assert all('lora_' in key if method == 'lora' else '.drop_path2.' in key for key in added)
    for key in added:
        assert not torch.equal(after[key], torch.zeros_like(after[key])), key


@pytest.mark.parametrize('name', ['test_vit', 'test_convnext', 'test_resnet'])
def test_merge_of_lora_leaves_plain_layers_with_the_sum_as_weight(name):
    model = network(name)
    plain, types = set(model.state_dict()), [type(m) for m in model.modules()]
    finetune.apply(model, 'lora', rank=2, alpha=3.0)
    train(model)
    input, _ = batch()
    tuned = copy.deepcopy(model)
    before = model.eval()(input)
    finetune.merge(model)
    assert set(model.state_dict()) == plain and [type(m) for m in model.modules()] == types
    assert all(p.requires_grad for p in model.parameters())
    torch.testing.assert_close(model(input), before)
    timm_alone = network(name).eval()
    timm_alone.load_state_dict(model.state_dict())
    assert torch.equal(timm_alone(input), model(input))
    layer = next(m for m in tuned.modules() if hasattr(m, 'lora_up'))
    where = next(n for n, m in tuned.named_modules() if m is layer)
    rows = torch.cat([torch.arange(len(layer.weight))[r] for r in layer.lora_rows])
    expected = layer.weight.detach().clone()
    for i, r in enumerate(layer.lora_rows):  # W + alpha / r B A, part by part
        down = layer.lora_down[2 * i:2 * i + 2]
        expected[r] += 1.5 * torch.einsum('or,r...->o...', layer.lora_up[i], down)
    torch.testing.assert_close(model.get_submodule(where).weight, expected)
    if name == 'test_vit':
        third = len(layer.weight) // 3
        assert rows.tolist() == [*range(third), *range(2 * third, 3 * third)], 'keys of a fused qkv stay'


def test_merge_of_a_copy_leaves_the_other_model_as_it_is():
    model = finetune.apply(network('test_vit'), 'lora')
    train(model)
    state = copy.deepcopy(model.state_dict())
    other = copy.deepcopy(model)
    for p, q in zip(other.parameters(), model.parameters()):
        p.data = q.data
    finetune.merge(other)
    assert all(torch.equal(state[k], v) for k, v in model.state_dict().items())


def test_batchnorm_of_frozen_layers_stays_in_evaluation_mode_until_the_merge():
    model = finetune.apply(network('test_resnet'), 'lora')
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    model.train()
    assert model.training and norms and not any(m.training for m in norms)
    assert not any(m.training for m in copy.deepcopy(model).train().modules() if isinstance(m, nn.BatchNorm2d))
    finetune.merge(model).train()
    assert all(m.training for m in norms)
    last = finetune.apply(network('test_resnet'), 'blocks:1').train()
    assert {m.training for m in last.modules() if isinstance(m, nn.BatchNorm2d)} == {True, False}


def test_adaptformer_adds_its_output_to_the_mlp_branch_as_in_the_equation():
    model = finetune.apply(network('test_vit'), 'adaptformer', rank=3).eval()
    train(model, steps=1)
    model.eval()
    block = model.blocks[0]
    x = torch.randn(2, 7, model.embed_dim)
    branch = block.drop_path2
    hidden = x + block.attn(block.norm1(x))
    adapter = branch.scale * branch.up(torch.relu(branch.down(branch.norm(hidden))))
    torch.testing.assert_close(block(x), hidden + block.ls2(block.mlp(block.norm2(hidden))) + adapter)
    assert branch.down.weight.shape == (3, model.embed_dim)


def test_adapters_work_with_gradient_checkpointing():
    gradients = []
    for checkpointing in (False, True):
        model = finetune.apply(network('test_vit'), 'adaptformer')
        model.set_grad_checkpointing(checkpointing)
        model(batch()[0]).square().sum().backward()
        gradients.append([p.grad for p in finetune.tuned_parameters(model).values()])
    assert all(torch.equal(a, b) for a, b in zip(*gradients, strict=True))


@pytest.mark.parametrize('method, divisor', [('lora', 4), ('adaptformer', 2)])
def test_default_rank_is_that_of_lift(method, divisor):
    model = timm.create_model('test_vit', num_classes=100, img_size=32, patch_size=8)
    layers = len(model.blocks)
    finetune.apply(model, method)
    sizes = {m.lora_up.shape[2] for m in model.modules() if hasattr(m, 'lora_up')} | {
        m.down.out_features for m in model.modules() if hasattr(m, 'down')}
    assert sizes == {2 ** int(torch.tensor(100 / (divisor * layers)).log2().floor().clamp(min=0))}


@pytest.mark.parametrize('method, settings, message', [
    ('lorra', {}, "Did you mean 'lora'"), ('lora:2', {}, 'blocks:2'), ('blocks:x', {}, 'blocks:2'),
    ('blocks:0', {}, 'last must be'), ('blocks:50', {}, 'has 6 blocks'), ('lora', {'rank': 0}, 'rank must be'),
    ('lora', {'rank': 10 ** 6}, 'rank must be at most'), ('lora', {'alpha': 0}, 'alpha must be'),
    ('lora', {'layers': 'nowhere.*'}, 'nowhere'), ('adaptformer', {'rank': -1}, 'rank must be'),
])
def test_wrong_names_and_settings_are_refused_and_change_nothing(method, settings, message):
    model = network('test_vit')
    with pytest.raises(ValueError, match=message):
        finetune.apply(model, method, **settings)
    assert all(p.requires_grad for p in model.parameters())
    assert set(model.state_dict()) == set(network('test_vit').state_dict())


def test_unknown_settings_missing_classifiers_and_a_second_call_are_refused():
    with pytest.raises(TypeError, match="no option 'dim'"):
        finetune.apply(network('test_vit'), 'lora', dim=3)
    with pytest.raises(TypeError, match='needs last'):
        finetune.apply(network('test_vit'), 'blocks')
    with pytest.raises(ValueError, match='no classifier'):
        finetune.apply(timm.create_model('test_vit', num_classes=0), 'lora')
    for method in ('lora', 'adaptformer'):
        model = finetune.apply(network('test_vit'), method)
        with pytest.raises(ValueError, match='already'):
            finetune.apply(model, method)
    tiny = {'img_size': 32, 'embed_dim': 12, 'depths': (1, 1), 'num_heads': (1, 2), 'window_size': 4}
    with pytest.raises(ValueError, match='without calling the layer'):
        finetune.apply(timm.create_model('swinv2_tiny_window8_256', num_classes=5, **tiny), 'lora')


# The classifier at the start

def features_of_three_classes():
    torch.manual_seed(0)
    labels = torch.tensor([0] * 30 + [1] * 6 + [2] * 3)
    centres = torch.eye(3).repeat_interleave(2, dim=1)
    return centres[labels] + 0.3 * torch.randn(39, 6), labels


def with_head(cosine):
    model = timm.create_model('resnet20_cifar', num_classes=3)
    model.fc = CosineClassifier(6, 3, scale=25.0) if cosine else nn.Linear(6, 3)
    return model


@pytest.mark.parametrize('cosine', [False, True])
def test_class_means_and_logistic_regression_set_the_classifier(cosine):
    features, labels = features_of_three_classes()
    head = initialize_head(with_head(cosine), 'class_mean', features, labels).fc
    for c in range(3):
        mean = features[labels == c].mean(0)
        torch.testing.assert_close(head.weight[c], mean / mean.norm())
    assert head.bias is None or not head.bias.any()

    def balanced_loss(classifier):
        losses = nn.functional.cross_entropy(classifier(features), labels, reduction='none').detach()
        return float(torch.stack([losses[labels == c].mean() for c in range(3)]).mean())

    fitted = initialize_head(with_head(cosine), 'logistic', features, labels).fc
    assert balanced_loss(fitted) < 0.5 * balanced_loss(head)
    with pytest.raises(ValueError, match=r'classes \[2\] have none'):
        initialize_head(with_head(cosine), 'class_mean', features[:36], labels[:36])


def test_a_file_of_class_vectors_sets_the_classifier_and_a_wrong_one_is_refused(tmp_path):
    model = use_cosine_classifier(network('test_vit'), scale=25.0)
    shape = model.get_classifier().weight.shape
    vectors = torch.randn(shape)
    save_file({'text': vectors}, tmp_path / 'text.safetensors')
    initialize_head(model, tmp_path / 'text.safetensors')
    torch.testing.assert_close(model.get_classifier().weight, nn.functional.normalize(vectors, dim=1))
    save_file({'a': vectors, 'b': vectors.clone()}, tmp_path / 'two.safetensors')
    save_file({'a': vectors[:2].clone()}, tmp_path / 'shape.safetensors')
    refused = {'two': 'one tensor', 'shape': r'\(2, 64\); the classifier needs \(5, 64\)', 'no': 'cannot be read'}
    for name, message in refused.items():
        with pytest.raises(ValueError, match=message):
            initialize_head(model, tmp_path / f'{name}.safetensors')

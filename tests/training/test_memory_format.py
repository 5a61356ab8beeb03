"""Channels-last: where it is chosen, and that it changes no more than rounding."""

import pytest
import timm
import torch
import torch.nn.functional as F

from timm_lt.optim import BatchClosure, optimizer_step
from timm_lt.training.config import parse_args, to_yaml
from timm_lt.training.memory_format import is_channels_last, wants_channels_last
from timm_lt.training.options import configuration

CPU, GPU = torch.device('cpu'), torch.device('cuda')


@pytest.mark.parametrize('asked, model, device, precision, expected', [
    (None, 'resnet20_cifar', CPU, 'no', True),
    (None, 'resnet20_cifar', CPU, 'bf16', True),
    (None, 'resnet20_cifar', GPU, 'bf16', True),
    (None, 'resnet20_cifar', GPU, 'no', False),
    (None, 'resnet20_cifar', torch.device('mps'), 'no', False),
    (None, 'test_vit', CPU, 'no', False),  # one convolution makes the patches
    (None, 'test_efficientnet', CPU, 'no', False),  # depthwise
    (False, 'resnet20_cifar', CPU, 'no', False),
    (True, 'test_vit', GPU, 'no', True),
])
def test_the_rule(asked, model, device, precision, expected):
    assert wants_channels_last(asked, timm.create_model(model, num_classes=10), device, precision) is expected


@pytest.mark.parametrize('given, expected', [
    ([], None), (['--channels-last'], True), (['--no-channels-last'], False), ('auto', None), ('true', True),
    ('null', None), ('false', False)])
def test_the_option_has_three_values_on_the_command_line_and_in_files(tmp_path, given, expected):
    if isinstance(given, str):
        (tmp_path / 'recipe.yaml').write_text(f'channels_last: {given}\n')
        given = ['--config', str(tmp_path / 'recipe.yaml')]
    args = parse_args(given)
    assert args.model.channels_last is expected
    (tmp_path / 'again.yaml').write_text(to_yaml(args))
    assert parse_args(['--config', str(tmp_path / 'again.yaml')]).model.channels_last is expected


def test_a_run_may_be_resumed_in_another_memory_format():
    # it says how the network is executed, and older runs have written `false`
    assert configuration(parse_args([])) == configuration(parse_args(['--no-channels-last']))


@pytest.mark.parametrize('name, options', [
    ('momentum', {}), ('sam', {}), ('asam', {}), ('ccsam', {}), ('imbsam', {'eta': 5}), ('ssesam', {'eta': 5}),
    ('focalsam', {}), ('gsa', {}),
    *(('gsa', {'batchnorm': mode}) for mode in ('stacked', 'exact_ascent')),
], ids=lambda v: v if isinstance(v, str) else '-'.join(map(str, v.values())))
@pytest.mark.filterwarnings('ignore::UserWarning')
def test_every_optimizer_steps_alike_in_both_formats(name, options):
    counts = [8, 6, 4, 2]
    weights = []
    for memory_format in (torch.contiguous_format, torch.channels_last):
        torch.manual_seed(0)
        model = timm.create_model('test_resnet', num_classes=4).double().to(memory_format=memory_format).train()
        assert is_channels_last(model) is (memory_format == torch.channels_last)
        aware = {} if name in ('momentum', 'sam', 'asam') else {'class_counts': counts}
        optimizer = timm.optim.create_optimizer_v2(model, name, lr=0.05, **aware, **options)
        images, labels = torch.randn(12, 3, 16, 16, dtype=torch.float64), torch.arange(12) % 4
        for _ in range(2):
            optimizer_step(optimizer, BatchClosure(model, torch.nn.CrossEntropyLoss(), images, labels))
        with torch.no_grad():
            loss = F.cross_entropy(model.eval()(images), labels)
        weights.append([loss, *(p.detach().contiguous() for p in model.parameters())])
    torch.testing.assert_close(weights[0], weights[1], rtol=1e-6, atol=1e-9)

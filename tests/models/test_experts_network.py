"""Networks with several experts: trunk, stages and classifiers, the loss of each expert, runs and their export."""

import json

import pytest
import timm
import torch
import torch.nn.functional as F

from timm_lt import create_loss
from timm_lt.models import ExpertsModel, ExpertsOutput
from timm_lt.training import main

COUNTS = [20, 6, 2, 1]
C = len(COUNTS)


def build(**options):
    torch.manual_seed(0)
    return timm.create_model('experts_network', **{'network': 'resnet20_cifar', 'num_classes': C, **options})


def test_logits_are_the_mean_of_separate_networks_on_one_trunk():
    model, x = build(num_experts=3).eval(), torch.randn(2, 3, 16, 16)
    plain = timm.create_model('resnet20_cifar', num_classes=C).eval()
    trunk = {k: v for k, v in model.state_dict().items() if not k.startswith(('layer3.', 'fc.'))}
    logits = []
    for k in range(3):
        prefix = f'layer3.0.experts.{k}.'
        stage = {f'layer3.{n.removeprefix(prefix)}': v for n, v in model.state_dict().items() if n.startswith(prefix)}
        plain.load_state_dict({**trunk, **stage, 'fc.weight': model.fc.weight[k], 'fc.bias': model.fc.bias[k]})
        logits.append(plain(x))
    torch.testing.assert_close(model(x), torch.stack(logits).mean(0))
    assert not torch.equal(logits[0], logits[1])
    assert torch.equal(ExpertsModel(model).eval()(x), model(x))
    features = model.forward_head(model.forward_features(x), pre_logits=True)
    torch.testing.assert_close(model.fc.expert_logits(features), torch.stack(logits, 1))


def test_cosine_experts_are_bounded_by_their_scale():
    model = build(network='test_resnet', num_experts=2, cosine_scale=4.0).eval()
    assert model(torch.randn(3, 3, 32, 32) * 50).abs().max() <= 4 and model.fc.bias is None


def test_parameters_grow_by_the_last_stage_and_the_classifier():
    count = {k: sum(p.numel() for p in build(network='resnet32_cifar', num_classes=100, num_experts=k).parameters())
             for k in (1, 2, 3)}
    plain = timm.create_model('resnet32_cifar', num_classes=100)
    more = sum(p.numel() for m in (plain.layer3, plain.fc) for p in m.parameters())
    assert count == {1: 470_004, 2: 470_004 + more, 3: 470_004 + 2 * more}


@pytest.mark.parametrize('network', ['test_vit', 'test_convnext', 'test_efficientnet'])
def test_other_networks_are_refused(network):
    with pytest.raises(ValueError, match='no residual network'):
        build(network=network)


def test_loss_is_the_mean_over_the_experts_of_their_adjusted_losses():
    generator = torch.Generator().manual_seed(0)
    experts = torch.randn(6, 3, C, generator=generator)
    target = torch.tensor([0, 1, 2, 3, -100, 0])
    soft = torch.rand(6, C, generator=generator).softmax(1)
    log_prior = (torch.tensor(COUNTS) / sum(COUNTS)).log()
    loss = create_loss('balpoe', COUNTS, taus=[0.0, 1.0, 2.0])
    for labels in (target, soft):
        expected = torch.stack([
            F.cross_entropy(experts[:, k] + k * log_prior, labels, reduction='none') for k in range(3)]).mean(0)
        output = ExpertsOutput(experts.mean(1), experts)
        torch.testing.assert_close(loss(output, labels, reduction='none'), expected)
    torch.testing.assert_close(
        loss(experts[:, 0], target), create_loss('balanced_softmax', COUNTS)(experts[:, 0], target))
    with pytest.raises(ValueError, match='2 experts'):
        loss(ExpertsOutput(experts.mean(1), experts[:, :2]), target)
    with pytest.raises(ValueError, match='taus'):
        create_loss('balpoe', COUNTS, taus=[])


def command(tmp_path, *options):
    return [
        '--dataset', 'timm_lt/digits', '--images-per-class', '20', '--imbalance-ratio', '5', '--epochs', '1', '--quiet',
        '--output', str(tmp_path), '--experiment', 'run', *options]


def test_a_run_exports_one_network(tmp_path):
    assert main(command(
        tmp_path, '--experts', '2', '--loss', 'balpoe', '--loss-kwargs', 'taus=[0,2]', '--opt', 'imbsam',
        '--opt-kwargs', 'eta=10', '--mixup', '0.2', '--cosine-classifier')) == 0
    metrics = json.loads((tmp_path / 'run' / 'metrics.json').read_text())
    model = timm.create_model(f'local-dir:{tmp_path / "run" / "hub"}', pretrained=True).eval()
    assert metrics['num_parameters'] == sum(p.numel() for p in model.parameters())
    assert model.fc.weight.shape == (2, 10, 64) and model.fc.cosine
    assert model(torch.randn(2, 3, 16, 16)).shape == (2, 10)


@pytest.mark.parametrize('options, message', [
    (['--experts', '2'], 'give --loss balpoe'), (['--loss', 'balpoe'], 'has no experts'),
    (['--experts', '3', '--loss', 'balpoe', '--stage2', 'crt'], 'experts have several'),
    (['--experts', '3', '--loss', 'balpoe', '--model', 'test_vit', '--img-size', '32'], 'no residual network'),
])
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, message):
    assert main(command(tmp_path, *options)) == 2
    assert message in capsys.readouterr().err

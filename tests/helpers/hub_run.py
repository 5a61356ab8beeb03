"""A finished run on made figures, for the tests of the hub folder."""

import timm
import torch

from timm_lt import ClassDistribution
from timm_lt.evaluate import report
from timm_lt.training.config import parse_args
from timm_lt.training.outputs import RunFolder

COUNTS = [120, 50, 20, 5]
NAMES = ['owl', 'newt', 'lynx', 'crab']


def make_run(folder, model='resnet20_cifar', options=(), **kwargs):
    """A finished run of a fresh network on made figures."""
    args = parse_args(['--dataset', 'torch/cifar10', '--model', model, '--output', str(folder.parent), *options])
    distribution = ClassDistribution(COUNTS, NAMES)
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 4, generator=generator), torch.arange(200) % 3  # no image of the few-shot class
    run = RunFolder(folder)
    run.write_args(args)
    run.write_distribution(distribution)
    protocol = {'test_part': "split 'test'", 'epoch_chosen_by': 'nothing: the last epoch', 'split_rule': 'gt100_lt20',
                'transductive': 'no', 'reported_epoch': 1}
    run.write_metrics(dict(report(logits, targets, distribution)) | {
        'model': model, 'num_parameters': 1234, 'epochs': 2, 'seed': 7, 'protocol': protocol})
    (folder / 'plots').mkdir()
    (folder / 'plots' / 'training_curves.png').write_bytes(b'\x89PNG curves')
    torch.manual_seed(1)
    network = timm.create_model(model, num_classes=4, **kwargs)
    with torch.no_grad():
        for buffer in network.buffers():
            if buffer.is_floating_point():
                buffer.uniform_(0.5, 1.5)
    return network.eval()

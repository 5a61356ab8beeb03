"""How faithful GSA's cheaper ways of treating BatchNorm are to the exact one.

    python benchmarks/gsa_fidelity.py [--model resnet32_cifar] [--size 32] [--batch 128] [--groups 2 4 8] [--device cpu]
        [--output FILE.txt]

Fidelity is the cosine between (gradient of the approximation - plain gradient) and (exact gradient - plain gradient),
by number of groups (size quantiles), on long-tailed and on balanced batches of made images, after 10 and 20 plain
steps. Their cost stands in ``cost.py``.
"""

import argparse
import copy
from pathlib import Path

import timm_lt  # noqa: F401  first: torch's threads then sleep while they wait

# isort: split

import timm
import torch
import torch.nn.functional as F
from _report import Report

from timm_lt.data import long_tailed_counts
from timm_lt.optim import BatchClosure

KINDS = ('exact_ascent', 'stacked')


def flat_gradient(model):
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet32_cifar')
    parser.add_argument('--size', type=int, default=32)
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--groups', type=int, nargs='+', default=[2, 4, 8])
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device)
    report = Report(device)
    counts = long_tailed_counts(500, 100, 100)
    model = timm.create_model(args.model, num_classes=100).to(device)
    label_chance = counts.double() / counts.sum()
    pattern = torch.randn(100, 3, args.size, args.size)

    def batch(labels='long-tailed'):
        chance = label_chance if labels == 'long-tailed' else torch.ones(100)
        y = torch.multinomial(chance, args.batch, replacement=True)
        return (pattern[y] * 0.5 + torch.randn(args.batch, 3, args.size, args.size)).to(device), y.to(device)

    def make(model, **options):
        return timm.optim.create_optimizer_v2(
            model, 'gsa', lr=0.01, momentum=0.9, class_counts=counts, **options)

    def closure(model, x, y):
        return BatchClosure(model, torch.nn.CrossEntropyLoss(), x, y)

    for checkpoint in range(2):
        optimizer = timm.optim.create_optimizer_v2(model, 'momentum', lr=0.05, momentum=0.9)
        model.train()
        for _ in range(10):
            closure(model, *batch())()
            optimizer.step()
        for groups in args.groups:
            for labels in ('long-tailed', 'balanced'):
                found = {kind: [] for kind in KINDS}
                for _ in range(2):
                    data = batch(labels)
                    own = copy.deepcopy(model)
                    closure(own, *data)()
                    plain = flat_gradient(own)
                    effect = {}
                    for kind in ('batch', *found):
                        own = copy.deepcopy(model)
                        make(own, num_groups=groups, batchnorm=kind).compute_grads(closure(own, *data))
                        effect[kind] = flat_gradient(own) - plain
                    for kind, values in found.items():
                        values.append(float(F.cosine_similarity(effect[kind], effect['batch'], dim=0)))
                report.line(f'{10 * checkpoint + 10} steps, G={groups}, {labels}: ' + ', '.join(
                    f'{kind} {min(v):.2f} to {max(v):.2f}' for kind, v in found.items()))
    report.write(args.output)


if __name__ == '__main__':
    main()

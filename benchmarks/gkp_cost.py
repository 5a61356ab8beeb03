"""Cost of GKP's epoch ends (quality, bank, groups, anchors, Fishers) as a share of an epoch of plain steps.

    python benchmarks/gkp_cost.py [--model resnet32_cifar] [--batch 128] [--device cpu] [--output FILE.txt]

Synthetic images with the class counts of CIFAR-100-LT, r = 100 (10,847 images). An epoch is its number of steps times
the median of measured plain steps; beside GSA's own steps the share is smaller by their cost.
"""

import argparse
import contextlib
import statistics
from pathlib import Path
from types import SimpleNamespace

import timm_lt  # noqa: F401  first: torch's threads then sleep while they wait

# isort: split

import timm
import torch
from _report import Report
from _timing import timed

from timm_lt.data import long_tailed_counts
from timm_lt.gkp import GKP, capped_indices, images_per_class
from timm_lt.optim import BatchClosure


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--model', default='resnet32_cifar')
    parser.add_argument('--batch', type=int, default=128)
    parser.add_argument('--regroup-every', type=int, default=10)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()
    torch.manual_seed(0)
    device = torch.device(args.device)
    counts = long_tailed_counts(500, 100, 100)
    labels = torch.repeat_interleave(torch.arange(100), counts)
    chosen = capped_indices(labels, images_per_class(counts))
    x, y = torch.randn(len(chosen), 3, 32, 32).to(device), labels[chosen].to(device)
    loader = list(zip(x.split(args.batch), y.split(args.batch)))
    model = timm.create_model(args.model, num_classes=100).to(device)
    optimizer = timm.optim.create_optimizer_v2(model, 'gsa', lr=0.01, momentum=0.9, class_counts=counts, Z=0.0)
    accelerator = SimpleNamespace(unwrap_model=lambda m, keep_torch_compile: m, autocast=contextlib.nullcontext)
    trainer = SimpleNamespace(model=model, optimizer=optimizer, accelerator=accelerator, epochs=100)
    gkp = GKP(counts, loader, regroup_epochs=[2, 4])
    gkp.on_train_start(trainer)

    images, targets = torch.randn(args.batch, 3, 32, 32).to(device), y[:args.batch]
    images, targets = images[:len(targets)], targets

    def step():
        optimizer.step(BatchClosure(model, torch.nn.CrossEntropyLoss(), images, targets))

    steps = [timed(step) for _ in range(7)][2:]
    gkp.on_epoch_end(trainer, 0)
    step()
    steps.append(timed(step))
    usual = timed(lambda: gkp.on_epoch_end(trainer, 1))
    gkp.on_epoch_end(trainer, 2)  # imports and compiles
    step()
    usual = min(usual, timed(lambda: gkp.on_epoch_end(trainer, 3)))
    steps.append(timed(step))
    regroup = timed(lambda: gkp.on_epoch_end(trainer, 4))
    epoch = statistics.median(steps) * (int(counts.sum()) // args.batch)
    mean = usual + (regroup - usual) / args.regroup_every
    report = Report(device)
    report.line(f'{len(chosen)} images measured of {int(counts.sum())}; epoch of plain steps {epoch:.1f} s')
    report.line(
        f'epoch end {usual:.2f} s = {100 * usual / epoch:.1f}%; with new groups, anchors and Fishers {regroup:.2f} s '
        f'= {100 * regroup / epoch:.1f}%; regrouping every {args.regroup_every} epochs {100 * mean / epoch:.1f}%')
    report.write(args.output)


if __name__ == '__main__':
    main()

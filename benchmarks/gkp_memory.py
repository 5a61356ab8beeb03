"""Memory and time of GKP's bank and grouping with as many classes as iNaturalist 2018, and the sums for ResNet-50.

    python benchmarks/gkp_memory.py [--classes 8142] [--epochs 20] [--encoder 100000] [--groups 4]
        [--output FILE.txt]

A small encoder walks at random, the quality of every class is random at every epoch: the worst case, in which a class's
best epoch can be any one. Nothing is ever held per class but its best score and epoch.
"""

import argparse
import resource
import tempfile
import time
from pathlib import Path

import timm_lt  # noqa: F401  first: torch's threads then sleep while they wait

# isort: split

import torch
from _report import Report

from timm_lt.gkp import MemoryBank, group_classes


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument('--classes', type=int, default=8142)
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--encoder', type=int, default=100_000)
    parser.add_argument('--groups', type=int, default=4)
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()
    report = Report()
    generator = torch.Generator().manual_seed(0)
    encoder = torch.randn(args.encoder, generator=generator)
    with tempfile.TemporaryDirectory() as folder:
        bank = MemoryBank(args.classes, folder)
        start = time.perf_counter()
        for epoch in range(args.epochs):
            encoder += 0.1 * torch.randn(args.encoder, generator=generator)
            quality = torch.randn(args.classes, generator=generator) + 0.1 * epoch
            bank.update(epoch, quality, [encoder])
        seconds = (time.perf_counter() - start) / args.epochs
        bank.checkpointed('last')
        files = list(bank.directory.iterdir())
        size = sum(f.stat().st_size for f in files)
        copies = args.classes * args.encoder * 4
        report.line(f'{args.classes} classes, {len(bank.epochs)} distinct best epochs, {len(files)} files, '
                    f'{size / 1e6:.1f} MB on disk ({copies / 1e9:.1f} GB as one copy per class); '
                    f'{1e3 * seconds:.0f} ms an epoch')
        start = time.perf_counter()
        groups, source = group_classes(bank, args.groups)
        report.line(f'grouped by {source} into {torch.bincount(groups).tolist()} classes '
                    f'in {time.perf_counter() - start:.1f} s')
        start = time.perf_counter()
        bank.anchor((groups == 0).nonzero().flatten())
        report.line(f'an anchor: {1e3 * (time.perf_counter() - start):.0f} ms')
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6
    report.line(f'peak host memory of this process: {peak:.2f} GB')
    parameters = 23_508_032  # ResNet-50 without its classifier
    vector = parameters * 4 / 1e9
    report.line(
        f'ResNet-50, 100 epochs: at most {100 * vector:.1f} GB of snapshots (half in bfloat16), where one copy per '
        f'class takes {8142 * vector:.0f} GB; on the accelerator curvature and centre, {2 * vector:.2f} GB, and while '
        f'anchors are renewed live weights, anchor, Fisher and a gradient, {4 * vector:.2f} GB more')
    report.write(args.output)


if __name__ == '__main__':
    main()

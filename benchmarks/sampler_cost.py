"""Cost of the samplers at the size of iNaturalist 2018: set-up, one epoch's order, and handing out its indices.

    python benchmarks/sampler_cost.py [--counts FILE.json] [--repeats 5] [--output FILE.txt]

Times are medians. The ratio is that of a whole epoch (order and all indices) per index to torch's ``RandomSampler``.
Without ``--counts`` (a JSON list of images per class, or timm's class-stats file) the class sizes follow an exponential
profile with the same number of classes and images.
"""

import argparse
import statistics
import time
from pathlib import Path

import timm_lt  # first: torch's threads then sleep while they wait

# isort: split

import torch
from _report import Report
from torch.utils.data import RandomSampler

NUM_CLASSES, NUM_IMAGES, LARGEST, SMALLEST = 8142, 437513, 1000, 2


def default_counts():
    """Exponential class sizes from 1000 down, at least 2, scaled to 437,513 images."""
    rate = torch.linspace(0, 1, NUM_CLASSES, dtype=torch.float64)
    low, high = 0.0, 100.0
    for _ in range(60):  # the decay whose sum is the number of images
        middle = (low + high) / 2
        total = (LARGEST * torch.exp(-middle * rate)).clamp(min=SMALLEST).sum()
        low, high = (middle, high) if total > NUM_IMAGES else (low, middle)
    counts = (LARGEST * torch.exp(-high * rate)).clamp(min=SMALLEST).floor().long()
    counts[:NUM_IMAGES - int(counts.sum())] += 1
    return counts


def seconds(function, repeats):
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def exhaust(sampler):
    for _ in sampler:
        pass


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--counts', help='JSON list of images per class, or class-stats file')
    parser.add_argument('--repeats', type=int, default=5)
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()
    report = Report()
    counts = timm_lt.ClassDistribution.from_json(args.counts).counts if args.counts else default_counts()
    targets = torch.repeat_interleave(torch.arange(len(counts)), counts)
    targets = targets[torch.randperm(len(targets), generator=torch.Generator().manual_seed(0))]

    plain = RandomSampler(range(len(targets)))
    plain_per_index = seconds(lambda: exhaust(plain), args.repeats) / len(targets)
    report.line(f'{len(counts)} classes, {len(targets)} images')
    titles = ('draws', 'set-up s', 'order s', 'epoch s', 'us/index')
    report.line(f'{"sampler":20s} {" ".join(f"{t:>9s}" for t in titles)} {"ratio":>6s}')
    report.line(
        f'{"RandomSampler":20s} {len(targets):9d} {"":9s} {"":9s} {plain_per_index * len(targets):9.3f} '
        f'{plain_per_index * 1e6:9.3f} {1:6.2f}')
    for name in timm_lt.list_samplers():
        options = {'num_epochs': 10} if name == 'progressive' else {}

        def build(name=name, options=options):
            return timm_lt.create_sampler(name, targets, **options)

        sampler = build()
        sampler.set_epoch(5)
        setup = seconds(build, args.repeats)
        order = seconds(sampler.order, args.repeats)
        epoch = seconds(lambda sampler=sampler: exhaust(sampler), args.repeats)
        per_index = epoch / len(sampler)
        report.line(
            f'{name:20s} {len(sampler):9d} {setup:9.3f} {order:9.3f} {epoch:9.3f} {per_index * 1e6:9.3f} '
            f'{per_index / plain_per_index:6.2f}')
    report.write(args.output)


if __name__ == '__main__':
    main()

"""Speed of the training loop: this package's, timm's own loader with a plain step, and a bare loop on ready batches.

    python benchmarks/loop_speed.py [--model resnet20_cifar] [--batch-size 128] [--steps 8] [--rounds 9] [--workers 1]
        [--output FILE.txt]

One round trains ``--steps`` steps with each, one after the other, on the embedded digits:

- bare: ``for input, target: zero_grad, forward, loss, backward, step`` on batches that are ready on the device, without
  augmentation: the fastest that any loop can be with this model;
- ours: the package's trainer with the loader of images in memory: crop, flip, Cutout, meter, schedule, the loss per
  sample, the batch closure;
- ours, bare step: the same loader with the bare step, the cost of the loader alone;
- timm: ``timm.data.create_loader`` on a folder of the same images as PNG files (random resized crop, flip) with the
  bare step.

Printed: images per second, the time of a round as a multiple of the bare loop's (median, lowest and highest round), and
the same multiple of this process's CPU time (median), which other work on the machine disturbs less; it leaves out what
timm's worker processes do.
"""

import argparse
import logging
import statistics
import tempfile
import time
from collections.abc import Iterable
from pathlib import Path

import timm_lt  # first: torch's threads then sleep while they wait

# isort: split

import timm
import timm.data
import torch
import torch.nn.functional as F
from _report import Report
from _timing import ratios_in_turns
from accelerate import Accelerator
from timm.scheduler import create_scheduler_v2

from timm_lt.data import Augmentation, create_dataset, create_train_loader, keep_in_memory
from timm_lt.training.outputs import RunFolder
from timm_lt.training.trainer import Trainer

MEAN, STD = (0.5,) * 3, (0.25,) * 3


def make_model(args, device):
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=10).to(device).train()
    return model, timm.optim.create_optimizer_v2(model, 'momentum', lr=0.01, momentum=0.9, weight_decay=5e-4)


def plain_steps(model, optimizer, batches: Iterable):
    for input, target in batches:
        optimizer.zero_grad()
        F.cross_entropy(model(input), target).backward()
        optimizer.step()


def bare(args, images, device):
    model, optimizer = make_model(args, device)
    size = args.batch_size
    batches = []
    for i in range(args.steps):
        part = slice(i * size, (i + 1) * size)
        batches.append((images.images[part].to(device).float().div(255), images.targets[part].to(device)))
    return lambda: plain_steps(model, optimizer, batches)


def memory_loader(args, images, device):
    sampler = timm_lt.create_sampler('instance_balanced', images.targets, num_samples=args.steps * args.batch_size)
    augmentation = Augmentation(images.image_size, MEAN, STD, cutout=8)
    return create_train_loader(images, sampler, augmentation, args.batch_size, device=device)


def our_loader(args, images, device):
    model, optimizer = make_model(args, device)
    loader = memory_loader(args, images, device)
    return lambda: plain_steps(model, optimizer, loader)


def ours(args, images, device, folder):
    accelerator = Accelerator(cpu=device.type == 'cpu')
    model, optimizer = accelerator.prepare(*make_model(args, device))
    loader = memory_loader(args, images, device)
    distribution = timm_lt.ClassDistribution.from_targets(images.targets)
    scheduler, epochs = create_scheduler_v2(optimizer, 'cosine', num_epochs=1000, updates_per_epoch=len(loader))
    trainer = Trainer(
        accelerator, model, torch.nn.CrossEntropyLoss(), optimizer, scheduler, loader, splits=distribution.splits(),
        epochs=epochs, folder=RunFolder(Path(folder), True), quiet=True)

    def run():
        trainer.progress.step = 0
        trainer._run_epoch(0)

    return run


def timm_loader(args, dataset, device, folder):
    root = Path(folder) / 'images'
    for i in range(args.steps * args.batch_size):
        image, label = dataset[i]
        (root / str(label)).mkdir(parents=True, exist_ok=True)
        image.save(root / str(label) / f'{i}.png')
    model, optimizer = make_model(args, device)
    loader = timm.data.create_loader(
        timm.data.create_dataset('', root=str(root)), (3, 32, 32), args.batch_size, is_training=True,
        color_jitter=None, mean=MEAN, std=STD, num_workers=args.workers, device=device)
    return lambda: plain_steps(model, optimizer, loader)


def cpu_timed(function, seconds):
    def run():
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)

    return run


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet20_cifar')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=8, help='steps of a round, at most 1438 images in all')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--workers', type=int, default=1, help="worker processes of timm's loader")
    parser.add_argument('--threads', type=int, default=0, help="torch's threads; 0: as they are")
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    args = parser.parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dataset = create_dataset('timm_lt/digits')
    if args.steps * args.batch_size > len(dataset):
        parser.error(f'there are {len(dataset)} images; use fewer steps or smaller batches')
    images = keep_in_memory(dataset)
    with tempfile.TemporaryDirectory() as folder:
        functions = {
            'bare': bare(args, images, device),
            'ours': ours(args, images, device, folder),
            'ours, bare step': our_loader(args, images, device),
            'timm': timm_loader(args, dataset, device, folder),
        }
        cpu = {name: [] for name in functions}
        ratios = ratios_in_turns(
            {name: cpu_timed(function, cpu[name]) for name, function in functions.items()}, 'bare', args.rounds)
    report = Report(device)
    report.line(f'{args.model}, batch {args.batch_size}, {args.steps} steps a round, {args.rounds} rounds')
    for name, ratio in ratios.items():
        speed = args.steps * args.batch_size / ratio.milliseconds * 1e3
        work = statistics.median(a / b for a, b in zip(cpu[name][-args.rounds:], cpu['bare'][-args.rounds:]))
        report.line(
            f'{name:16} {speed:9.0f} images/s   {ratio.median:.3f} of bare ({ratio.low:.3f} to {ratio.high:.3f})   '
            f'CPU time {work:.3f}')
    report.write(args.output)


if __name__ == '__main__':
    main()

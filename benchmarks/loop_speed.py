"""Speed of the training loop: this package's, timm's own loader with a plain step, and a bare loop on ready batches.

    python benchmarks/loop_speed.py [--model resnet20_cifar] [--batch-size 128] [--steps 8] [--rounds 9] [--workers 1]
        [--mixed-precision bf16] [--threads 1] [--output FILE.txt]

One round trains ``--steps`` steps with each, one after the other, on the embedded digits:

- bare: ``for input, target: zero_grad, forward, loss, backward, step`` on batches that are ready on the device, without
  augmentation: the fastest that any loop can be with this model;
- ours: the package's trainer with the loader of images in memory: crop, flip, Cutout, meter, schedule, the loss per
  sample, the batch closure;
- ours, bare step: the same loader with the bare step, the cost of the loader alone;
- AutoAugment: the loader with AutoAugment (CIFAR-10) and Cutout of 16 pixels, and the bare step;
- timm: ``timm.data.create_loader`` on a folder of the same images as PNG files (random resized crop, flip) with the
  bare step.

Then the same for the three views of BCL: a bare step on three ready views of each image, and on those of the loader
(the first with AutoAugment and Cutout).

Printed: images per second, the time of a round as a multiple of the bare loop's (median, lowest and highest round), and
the same multiple of this process's CPU time (median), which other work on the machine disturbs less; it leaves out what
timm's worker processes do. At last the CPU time of the loader alone for several augmentations, in microseconds an image
(lowest and median round), for whole batches and for single images through PIL.
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

from timm_lt.data import Augmentation, ImageSubset, create_dataset, create_train_loader, keep_in_memory, three_views
from timm_lt.training.learner import Learner
from timm_lt.training.options import RunOptions
from timm_lt.training.outputs import RunFolder
from timm_lt.training.trainer import Trainer
from timm_lt.training.windows import Windows

MEAN, STD = (0.5,) * 3, (0.25,) * 3


WEAK = {'cutout': 8}
STRONG = {'auto_augment': 'cifar10', 'cutout': 16}
VIEWS = 'three views'
COSTS = {
    'crop, flip': {},
    'crop, flip, Cutout': WEAK,
    'AutoAugment (CIFAR-10), Cutout': STRONG,
    'AutoAugment (ImageNet)': {'auto_augment': 'imagenet'},
    'TrivialAugment': {'auto_augment': 'trivial'},
    'rand-m9-mstd0.5-inc1': {'auto_augment': 'rand-m9-mstd0.5-inc1'},
    'augmix-m3': {'auto_augment': 'augmix-m3'},
    'random resized crop': {'crop_mode': 'rrc'},
    'jitter (0.4, 0.4, 0.4, 0.1)': {'color_jitter': (0.4, 0.4, 0.4, 0.1)},
    'grey, blur (0.2, 0.5)': {'grayscale_prob': 0.2, 'gaussian_blur_prob': 0.5},
    f'AutoAugment, Cutout, {VIEWS}': STRONG,
}


def make_model(args, device):
    torch.manual_seed(0)
    model = timm.create_model(args.model, num_classes=10).to(device).train()
    return model, timm.optim.create_optimizer_v2(model, 'momentum', lr=0.01, momentum=0.9, weight_decay=5e-4)


def plain_steps(args, model, optimizer, batches: Iterable):
    device = next(model.parameters()).device.type
    for input, target in batches:
        if input.ndim == 5:
            target = target.repeat_interleave(input.shape[1])
            input = input.flatten(0, 1)
        optimizer.zero_grad()
        with torch.autocast(device, torch.bfloat16, enabled=args.mixed_precision == 'bf16'):
            loss = F.cross_entropy(model(input), target)
        loss.backward()
        optimizer.step()


def bare(args, images, device, views=1):
    model, optimizer = make_model(args, device)
    size = args.batch_size
    batches = []
    for i in range(args.steps):
        part = slice(i * size, (i + 1) * size)
        ready = images.images[part].to(device).float().div(255)
        batches.append((
            ready if views == 1 else torch.stack([ready] * views, 1), images.targets[part].to(device)))
    return lambda: plain_steps(args, model, optimizer, batches)


def train_loader(args, dataset, device, changes, views=1, steps=None):
    sampler = timm_lt.create_sampler(
        'instance_balanced', dataset.targets, num_samples=(steps or args.steps) * args.batch_size)
    augmentation = Augmentation((3, 32, 32), MEAN, STD, **changes)
    return create_train_loader(
        dataset, sampler, augmentation, args.batch_size, device=device,
        transform=None if views == 1 else three_views(augmentation))


def our_loader(args, images, device, changes, views=1):
    model, optimizer = make_model(args, device)
    loader = train_loader(args, images, device, changes, views)
    return lambda: plain_steps(args, model, optimizer, loader)


def ours(args, images, device, folder):
    accelerator = Accelerator(cpu=device.type == 'cpu', mixed_precision=args.mixed_precision)
    model, optimizer = accelerator.prepare(*make_model(args, device))
    loader = train_loader(args, images, device, WEAK)
    distribution = timm_lt.ClassDistribution.from_targets(images.targets)
    scheduler, epochs = create_scheduler_v2(optimizer, 'cosine', num_epochs=1000, updates_per_epoch=len(loader))
    learner = Learner(accelerator, model, torch.nn.CrossEntropyLoss(), optimizer, scheduler)
    trainer = Trainer(
        learner, Windows(loader), epochs, distribution.splits(), RunFolder(Path(folder), True), RunOptions(quiet=True))

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
    return lambda: plain_steps(args, model, optimizer, loader)


def cpu_timed(function, seconds):
    def run():
        start = time.process_time()
        function()
        seconds.append(time.process_time() - start)

    return run


def compare(args, report, functions, baseline, number=1):
    """Rows of the functions, each as a multiple of the baseline; ``number``: views of an image."""
    cpu = {name: [] for name in functions}
    ratios = ratios_in_turns(
        {name: cpu_timed(function, cpu[name]) for name, function in functions.items()}, baseline, args.rounds)
    base = statistics.median(cpu[baseline])
    for name, ratio in ratios.items():
        speed = number * args.steps * args.batch_size / ratio.milliseconds * 1e3
        report.line(
            f'{name:26} {speed:7.0f} images/s   {ratio.median:.3f} of bare ({ratio.low:.3f} to {ratio.high:.3f})   '
            f'CPU time {statistics.median(cpu[name]) / base:.3f}')


def loader_cost(args, dataset, device, name, steps=None):
    """Lowest and median CPU time of the loader, microseconds an image."""
    loader = train_loader(args, dataset, device, COSTS[name], 3 if VIEWS in name else 1, steps)
    seconds = []
    run = cpu_timed(lambda: [None for _ in loader], seconds)
    for _ in range(args.rounds + 1):
        run()
    per_image = [1e6 * s / (len(loader) * args.batch_size) for s in seconds[1:]]
    return min(per_image), statistics.median(per_image)


def parse_args():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--model', default='resnet20_cifar')
    parser.add_argument('--batch-size', type=int, default=128)
    parser.add_argument('--steps', type=int, default=8, help='steps of a round, at most 1438 images in all')
    parser.add_argument('--rounds', type=int, default=9)
    parser.add_argument('--workers', type=int, default=1, help="worker processes of timm's loader")
    parser.add_argument('--threads', type=int, default=0, help="torch's threads; 0: as they are")
    parser.add_argument('--mixed-precision', default='no', choices=['no', 'bf16'])
    parser.add_argument('--output', type=Path, help='text file for what is printed')
    return parser, parser.parse_args()


def main():
    parser, args = parse_args()
    if args.threads:
        torch.set_num_threads(args.threads)
    logging.disable(logging.INFO)
    device = torch.device('cuda' if torch.cuda.is_available() else 'cpu')
    dataset = create_dataset('timm_lt/digits')
    if args.steps * args.batch_size > len(dataset):
        parser.error(f'there are {len(dataset)} images; use fewer steps or smaller batches')
    images = keep_in_memory(dataset)
    report = Report(device)
    report.line(
        f'{args.model}, batch {args.batch_size}, {args.steps} steps a round, {args.rounds} rounds, '
        f'mixed precision: {args.mixed_precision}')
    with tempfile.TemporaryDirectory() as folder:
        compare(args, report, {
            'bare': bare(args, images, device),
            'ours': ours(args, images, device, folder),
            'ours, bare step': our_loader(args, images, device, WEAK),
            'AutoAugment, bare step': our_loader(args, images, device, STRONG),
            'timm': timm_loader(args, dataset, device, folder),
        }, 'bare')
    compare(args, report, {
        f'{VIEWS}, bare': bare(args, images, device, 3),
        f'{VIEWS}, bare step': our_loader(args, images, device, STRONG, 3),
    }, f'{VIEWS}, bare', 3)
    report.line('loader alone, CPU microseconds an image (lowest, median): whole batches; single images')
    for name in COSTS:
        whole, single = loader_cost(args, images, device, name), loader_cost(args, ImageSubset(images), device, name, 1)
        report.line(f'{name:42} {whole[0]:6.1f} {whole[1]:6.1f}   {single[0]:7.1f} {single[1]:7.1f}')
    report.write(args.output)


if __name__ == '__main__':
    main()

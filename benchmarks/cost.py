"""Cost of every optimizer, loss and second stage, as multiples of a plain step of the same network and batch.

    python benchmarks/cost.py [--device cpu] [--threads N] [--parts optimizers losses ...] [--output cost]
        [--no-loops] [--class-counts inat2018.json]

Everything is timed in turns with the plain step between any two, in one run of under ten minutes on two cores. Peak
memory is what a step allocates beyond what lay there before, as a multiple of the plain step's, and in copies of the
parameters more than it. 'plain loops' are the published structures written with loops over classes and groups
(``_steps.py``), so that a speed-up is a measured ratio. Written to ``--output``: ``cost.md``, ``cost.csv``,
``cost.png``.

Labels follow an exponential profile of ratio 100, with every group in the batch; for methods that split head and tail,
15% of a batch are tail. The learning rate is 0, so that each call does the same work.
"""

import argparse
import csv
import json
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import timm_lt  # first: torch's threads then sleep while they wait

# isort: split

import timm
import torch
import torch.nn as nn
from _report import provenance
from _steps import (
    HeadOnly,
    Step,
    class_counts,
    head_and_tail,
    labels_of_groups,
    long_tailed_labels,
    looped_ccsam_loss,
    looped_ccsam_step,
    network,
    optimizer_step,
    plain_parts_step,
    released_gsa_step,
)
from _timing import peak_memory, ratios_in_turns

from timm_lt.optim import BatchClosure
from timm_lt.two_stage import classifier_inputs, create_second_stage

ETA = 20
PLAIN = 'plain step'
# registered name, options, epoch of 10, classes matter
OPTIMIZERS = {
    'sam': ('sam', {}, 0, False),
    'asam': ('asam', {}, 0, False),
    'gsam': ('gsam', {}, 0, False),
    'gnp': ('gnp', {}, 0, False),
    'friendlysam': ('friendlysam', {}, 0, False),
    'rwp': ('rwp', {}, 0, False),
    'imbsam': ('imbsam', {'eta': ETA}, 0, True),
    'ssesam, first stage': ('ssesam', {'eta': ETA}, 0, True),
    'ssesam, second stage': ('ssesam', {'eta': ETA}, 9, True),
    'focalsam': ('focalsam', {}, 0, True),
    'ccsam': ('ccsam', {}, 0, True),
    'gsa, G=4': ('gsa', {}, 0, True),
}
# ways of treating BatchNorm that differ from the default, the exact one
APPROXIMATE = {
    'ssesam, first stage, stacked': ('ssesam', {'eta': ETA, 'batchnorm': 'stacked'}, 0, True),
    'gsa, G=4, exact_ascent': ('gsa', {'batchnorm': 'exact_ascent'}, 0, True),
    'gsa, G=4, stacked': ('gsa', {'batchnorm': 'stacked'}, 0, True),
}
# without BatchNorm, only the samples of a part pass again: what is left is the part's share of the batch
SUBSETS = ('imbsam', 'ssesam, first stage')
# network, batch, image size, norm, methods
SETTINGS = [
    ('resnet32_cifar', 128, 32, 'batch', OPTIMIZERS | APPROXIMATE),
    ('resnet32_cifar', 128, 32, 'group', OPTIMIZERS),
    ('resnet50', 32, 64, 'batch', OPTIMIZERS | APPROXIMATE),
    ('resnet50', 32, 64, 'group', OPTIMIZERS),
    ('resnet50', 128, 64, 'group', {name: OPTIMIZERS[name] for name in SUBSETS}),
]


@dataclass
class Row:
    """One figure of the table.

    Attributes:
        part: Section of the table.
        setting: Network, batch and what else is held fixed.
        name: What was timed.
        ratio, low, high: Median and extremes of time over the plain step's.
        ms: Median milliseconds of one call.
        memory: Peak memory over the plain step's; None if not measured.
        copies: Peak memory beyond the plain step's, in copies of the parameters.
    """
    part: str
    setting: str
    name: str
    ratio: float
    low: float
    high: float
    ms: float
    memory: float | None = None
    copies: float | None = None


class Bench:
    """What all parts share.

    Args:
        device: Where networks and batches lie.
        seconds: How long to measure for a table.
        counts: Images per class of a real set, if one was given.
        loops: Whether the published structures are measured beside the optimizers.
    """

    def __init__(
            self, device: torch.device, seconds: float, counts: list[int] | None = None, loops: bool = True) -> None:
        self.device, self.seconds, self.counts, self.loops = device, seconds, counts, loops

    def rows(
            self,
            part: str,
            setting: str,
            steps: dict[str, Step],
            baseline: str = PLAIN,
            model: nn.Module | None = None,
            repeat: int = 1,
    ) -> Iterator[Row]:
        """Time the steps in turns; with ``model`` their memory is measured too."""
        ratios = ratios_in_turns(steps, baseline, seconds=self.seconds, repeat=repeat)
        peaks = {} if model is None else {name: peak_memory(step, self.device) for name, step in steps.items()}
        for name, r in ratios.items():
            row = Row(part, setting, name, r.median, r.low, r.high, r.milliseconds)
            if peaks:
                size = sum(p.numel() * p.element_size() for p in model.parameters())
                row.memory = peaks[name] / peaks[baseline]
                row.copies = (peaks[name] - peaks[baseline]) / size
            yield row

    def batch(self, batch: int, size: int, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return torch.randn(batch, 3, size, size, device=self.device), labels.to(self.device)


def optimizers(bench: Bench) -> Iterator[Row]:
    counts = class_counts(100)
    tail = [int(n < ETA) for n in counts]
    groups = timm_lt.ClassDistribution(counts).size_groups(4)
    samples = torch.zeros(4, dtype=torch.int64).index_add_(0, groups, torch.tensor(counts)).tolist()
    for name, batch, size, norm, methods in SETTINGS:
        model = network(name, 100, bench.device, norm)
        x, y = bench.batch(batch, size, labels_of_groups(counts, batch, groups))
        split = head_and_tail(counts, batch, ETA).to(bench.device)
        steps = {PLAIN: optimizer_step(model, x, y, 'momentum', {})} | {
            label: optimizer_step(
                model, x, split if 'eta' in options else y, method, options, counts if aware else None, epoch)
            for label, (method, options, epoch, aware) in methods.items()}
        if norm == 'batch':
            steps['gkp penalty'] = optimizer_step(model, x, y, 'gsa', {'Z': 0.0}, counts, penalty=True)
        if norm == 'batch' and bench.loops:
            steps['gsa, G=4, plain loops'] = plain_parts_step(
                model, x, y, groups.tolist(), [0.05] * 4, projected=True)
        if norm == 'batch' and bench.loops and name == 'resnet32_cifar':
            steps |= {
                'imbsam, plain loops': plain_parts_step(model, x, split, tail, [0.0, 0.05]),
                'ssesam, first stage, plain loops': plain_parts_step(model, x, split, tail, [0.05, 0.1]),
                'gsa, G=4, released structure': released_gsa_step(model, x, y, groups, samples),
                'ccsam, plain loops': looped_ccsam_step(model, x, y, counts)}
        yield from bench.rows(
            'optimizers', f'{name}, batch {batch}, {size}x{size}, {norm.capitalize()}Norm, C=100', steps, model=model)


def losses(bench: Bench) -> Iterator[Row]:
    counts = class_counts(100)
    model = network('resnet32_cifar', 100, bench.device)
    x, y = bench.batch(128, 32, long_tailed_labels(counts, 128))

    def step(criterion: nn.Module) -> Step:
        return optimizer_step(model, x, y, 'momentum', {}, criterion=criterion)

    steps = {PLAIN: step(nn.CrossEntropyLoss()), 'cross-entropy again': step(nn.CrossEntropyLoss())}
    for name, options in [(n, {}) for n in timm_lt.list_losses()] + [('gala', {'variant': 'released'})]:
        label = ', '.join([name, *options.values()])
        steps[label] = step(timm_lt.create_loss(name, counts, **options).to(bench.device))
    yield from bench.rows('losses', 'step of resnet32_cifar, batch 128, C=100', steps, model=model)


def classes(bench: Bench) -> Iterator[Row]:
    profiles = [class_counts(n, largest=1000) for n in (10, 100, 1000, 8142)]
    for counts in [*profiles[:3], bench.counts or profiles[3]]:
        num_classes, dim = len(counts), 64 if len(counts) <= 100 else 2048
        model = HeadOnly(dim, num_classes).to(bench.device)
        features = torch.randn(128, dim, device=bench.device, requires_grad=True)
        y = long_tailed_labels(counts, 128).to(bench.device)

        def forward_backward(criterion: nn.Module, model: nn.Module = model, x: torch.Tensor = features,
                             y: torch.Tensor = y) -> Step:
            def step() -> None:
                model.zero_grad()
                x.grad = None
                criterion(model(x), y).backward()
            return step

        plain = nn.CrossEntropyLoss()
        closure = BatchClosure(model, plain, features, y)
        ccsam = timm.optim.create_optimizer_v2(model, 'ccsam', lr=0.0, class_counts=counts)

        def looped(model: nn.Module = model, x: torch.Tensor = features, y: torch.Tensor = y,
                   counts: list[int] = counts) -> None:
            model.zero_grad()
            looped_ccsam_loss(model.fc, x, y, counts).backward()

        steps = {
            PLAIN: forward_backward(plain),
            'balanced_softmax': forward_backward(timm_lt.create_loss('balanced_softmax', counts).to(bench.device)),
            'gala': forward_backward(timm_lt.create_loss('gala', counts).to(bench.device)),
            'gala, released': forward_backward(
                timm_lt.create_loss('gala', counts, variant='released').to(bench.device)),
            'ccsam': lambda closure=closure, ccsam=ccsam: ccsam.compute_grads(closure)}
        if num_classes <= 1000:  # a second a call beyond
            steps['ccsam, plain loops'] = looped
        yield from bench.rows(
            'classes', f'loss and linear classifier alone, D={dim}, batch 128, C={num_classes}', steps,
            model=model, repeat=10 if num_classes <= 100 else 1)


def groups(bench: Bench) -> Iterator[Row]:
    counts = class_counts(100)
    model = network('resnet20_cifar', 100, bench.device)
    by_size = timm_lt.ClassDistribution(counts).size_groups(16)
    x, y = bench.batch(64, 32, labels_of_groups(counts, 64, by_size))
    steps = {PLAIN: optimizer_step(model, x, y, 'momentum', {})}
    for number in (1, 2, 4, 8, 16):
        for label, options in (('stacked', {'batchnorm': 'stacked'}), ('exact', {})):
            if label == 'stacked' or number <= 8:  # 29 plain steps a call beyond
                steps[f'gsa, G={number}, {label}'] = optimizer_step(
                    model, x, y, 'gsa', {'num_groups': number, **options}, counts)
    yield from bench.rows('groups', 'resnet20_cifar, batch 64, BatchNorm, C=100', steps, model=model)


def parameters(bench: Bench) -> Iterator[Row]:
    counts = class_counts(100)
    groups = timm_lt.ClassDistribution(counts).size_groups(4)
    for name in ('resnet20_cifar', 'resnet32_cifar', 'resnet32_cifar_x4', 'resnet50'):
        model = network(name, 100, bench.device)
        batch = 16
        x, y = bench.batch(batch, 32, labels_of_groups(counts, batch, groups))
        steps = {
            PLAIN: optimizer_step(model, x, y, 'momentum', {}),
            'sam': optimizer_step(model, x, y, 'sam', {}),
            'ccsam': optimizer_step(model, x, y, 'ccsam', {}, counts),
            'gsa, G=4, stacked': optimizer_step(model, x, y, 'gsa', {'batchnorm': 'stacked'}, counts),
            'gkp penalty': optimizer_step(model, x, y, 'gsa', {'Z': 0.0}, counts, penalty=True)}
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        yield from bench.rows(
            'parameters', f'{name} ({millions:.2f} M parameters), batch {batch}, 32x32', steps, model=model)


def second_stages(bench: Bench) -> Iterator[Row]:
    counts = class_counts(100)
    x, y = bench.batch(128, 32, torch.randint(100, (128,)))
    criterion = nn.CrossEntropyLoss()
    steps = {}
    for name in ('crt', 'lws', 'mislas', 'h2t', 'los', 'weight_balancing', 'disalign', 'ccsam'):
        model = network('resnet32_cifar', 100, bench.device)
        method = create_second_stage(name, counts)
        method.prepare(model)
        method.to(bench.device)
        optimizer = torch.optim.SGD(method.param_groups(), lr=0.0)

        def step(model: nn.Module = model, method: nn.Module = method,
                 optimizer: torch.optim.Optimizer = optimizer) -> None:
            optimizer.zero_grad()
            method(classifier_inputs(model, x), y, criterion, 0.5).backward()
            optimizer.step()

        steps[name] = step
    yield from bench.rows(
        'second stages', 'resnet32_cifar with frozen backbone, batch 128, C=100, against cRT', steps, baseline='crt',
        model=model)


PARTS = {f.__name__: f for f in (optimizers, losses, second_stages, classes, groups, parameters)}


def markdown(rows: list[Row], heading: str) -> str:
    lines = [heading]
    for part in dict.fromkeys(r.part for r in rows):
        for setting in dict.fromkeys(r.setting for r in rows if r.part == part):
            lines += ['', f'**{part}**: {setting}', '', '| step | time | smallest to largest | ms | peak memory | more '
                      'copies of the parameters |', '| --- | --- | --- | --- | --- | --- |']
            for r in rows:
                if (r.part, r.setting) == (part, setting):
                    memory = ('', '') if r.memory is None else (f'{r.memory:.2f}', f'{r.copies:+.2f}')
                    lines.append(f'| {r.name} | {r.ratio:.3f} | {r.low:.3f} to {r.high:.3f} | {r.ms:.2f} | '
                                 f'{memory[0]} | {memory[1]} |')
    return '\n'.join(lines) + '\n'


def plot(rows: list[Row], path: Path) -> None:
    """Times of the optimizers for each network, published structures in grey."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    settings = list(dict.fromkeys(r.setting for r in rows if r.part == 'optimizers' and 'BatchNorm' in r.setting))
    if not settings:
        return
    fig, axes = plt.subplots(1, len(settings), figsize=(5 * len(settings), 4.2), sharey=True, layout='constrained')
    for axis, setting in zip([axes] if len(settings) == 1 else axes, settings):
        mine = [r for r in rows if r.setting == setting]
        plain = ['loops' in r.name or 'released' in r.name for r in mine]
        axis.barh([r.name for r in mine], [r.ratio for r in mine], color=['0.75' if p else '0.25' for p in plain])
        for place, r in enumerate(mine):
            axis.text(r.ratio, place, f' {r.ratio:.2f}', va='center', fontsize=7)
        axis.set(title=setting.split(', C=')[0], xlabel='multiples of a plain step (grey: published structures)')
        axis.title.set_fontsize(8)
        axis.tick_params(labelsize=8)
        axis.margins(x=0.12)
    axis.invert_yaxis()
    fig.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--device', default='cpu')
    parser.add_argument('--threads', type=int, default=torch.get_num_threads())
    parser.add_argument('--parts', nargs='+', default=list(PARTS), choices=list(PARTS))
    parser.add_argument('--seconds', type=float, default=8.0, help='of measuring for a table; two rounds at least')
    parser.add_argument(
        '--class-counts', type=Path, help='JSON list of images per class, in the place of the largest made-up one')
    parser.add_argument(
        '--loops', action=argparse.BooleanOptionalAction, default=True,
        help='measure the published structures beside the optimizers')
    parser.add_argument('--output', type=Path, default=Path('cost'))
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    device = torch.device(args.device)
    start, rows = time.perf_counter(), []
    heading = ', '.join(f'{k} {v}' for k, v in provenance(device).items()) + (
        '; time as a multiple of the first row of each table, median over rounds.')
    args.output.mkdir(parents=True, exist_ok=True)
    bench = Bench(device, args.seconds, args.class_counts and json.loads(args.class_counts.read_text()),
                  args.loops)
    for part in args.parts:
        torch.manual_seed(0)
        for row in PARTS[part](bench):
            rows.append(row)
            print(f'{row.part:14} {row.setting[:44]:44} {row.name:32} {row.ratio:7.3f} {row.ms:9.2f} ms', flush=True)
        # what stands is kept if a later part is stopped
        (args.output / 'cost.md').write_text(markdown(rows, heading))
        with open(args.output / 'cost.csv', 'w', newline='') as file:
            writer = csv.DictWriter(file, list(asdict(rows[0])))
            writer.writeheader()
            writer.writerows(asdict(r) for r in rows)
    plot(rows, args.output / 'cost.png')
    print(f'{time.perf_counter() - start:.0f} s; written to {args.output}')


if __name__ == '__main__':
    sys.exit(main())

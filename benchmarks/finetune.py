#!/usr/bin/env python3
"""Fine-tuning against training from scratch, without downloaded weights: pretrain on one set, tune on another.

    python benchmarks/finetune.py --pretrain hfds/PATH/tiny100 --tune hfds/PATH/cifar10 [--networks vit resnet]
        [--tunings scratch head full lora lora_sam] [--losses ce balanced_softmax] [--seeds 0 1 2]
        [--pretrain-epochs 30] [--pretrain-images N] [--epochs 20] [--images-per-class N] [--output finetune]

Each network is pretrained once on the balanced set, then tuned on a long-tailed subset (imbalance ratio 100) of the
other: every tuning with every loss and seed, each a run of ``train_lt.py``. A run that was killed goes on where it
ended; one that is finished is not repeated. Written to ``--output``: the run folders, ``results.json`` and
``results.md`` (mean and standard deviation over seeds). The last epoch is reported; nothing is chosen on the test set.

Rates were not searched: AdamW at 1e-3 for the ViTs and SGD at 0.1 for ``resnet`` from scratch and in pretraining, a
fifth of it for ``full``, the rate itself for what trains few parameters.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from _report import provenance

ROOT = Path(__file__).parents[1]
FIGURES = ('top1', 'many', 'medium', 'few')
VIT = '--model vit_tiny_patch16_224 --img-size 32 --model-kwargs'
# options that name the network, learning rate, optimizer, weight decay
NETWORKS = {
    'vit': (f'{VIT} patch_size=4 embed_dim=192 depth=6 num_heads=3', 1e-3, 'adamw', 0.05),  # 2.7 M parameters
    'small_vit': (f'{VIT} patch_size=8 embed_dim=96 depth=4 num_heads=3', 1e-3, 'adamw', 0.05),  # 0.5 M
    'resnet': ('--model resnet32_cifar', 0.1, 'momentum', 5e-4),
}
# options beside those of the network, factor on the rate, whether pretrained weights are the start
TUNINGS = {
    'scratch': ('', 1.0, False),
    'head': ('--finetune head --feature-copies 4', 1.0, True),
    'full': ('--finetune full', 0.2, True),
    'lora': ('--finetune lora --finetune-kwargs rank=4', 1.0, True),
    'lora_sam': ('--finetune lora --finetune-kwargs rank=4 --opt sam --opt-kwargs rho=0.05 base={base}', 1.0, True),
}
COMMON = '-b 128 --warmup-epochs 2 --sched-on-updates --mixed-precision bf16 --quiet --workers 0'


@dataclass(frozen=True)
class Run:
    """A run of ``train_lt.py``: its name, and its options beside the folder."""
    name: str
    options: tuple[str, ...]


def pretraining(args: argparse.Namespace, network: str) -> Run:
    options, rate, opt, decay = NETWORKS[network]
    images = args.pretrain_images
    cap = ['--imbalance-ratio', '1', '--images-per-class', str(images)] if images else []
    return Run(f'{network}-pretrain', (
        *options.split(), *COMMON.split(), '--dataset', args.pretrain, '--loss', 'ce', '--seed', '0',
        *cap, '--opt', opt, '--weight-decay', str(decay), '--epochs', str(args.pretrain_epochs), '--lr', str(rate)))


def tuning(args: argparse.Namespace, network: str, name: str, loss: str, seed: int) -> Run:
    options, rate, opt, decay = NETWORKS[network]
    own, factor, pretrained = TUNINGS[name]
    if pretrained:  # timm gives it a new classifier
        options = f'--model local-dir:{args.output / f"{network}-pretrain" / "hub"} --pretrained'
    cap = ['--images-per-class', str(args.images_per_class)] if args.images_per_class else []
    return Run(f'{network}-{name}-{loss}-s{seed}', (
        *options.split(), *COMMON.split(), '--opt', opt, '--weight-decay', str(decay), *own.format(base=opt).split(),
        *cap, '--dataset', args.tune, '--imbalance-ratio', '100', '--split-rule', 'thirds', '--loss', loss,
        '--seed', str(seed), '--epochs', str(args.epochs), '--lr', str(rate * factor)))


def execute(run: Run, output: Path) -> dict:
    """Metrics of a run with its peak memory; it is started or resumed where it is not finished."""
    record = output / run.name / 'benchmark.json'
    if record.is_file():
        return json.loads(record.read_text())
    command = [sys.executable, str(ROOT / 'train_lt.py'), *run.options, '--output', str(output),
               '--experiment', run.name, '--resume', 'auto']
    print(run.name, flush=True)
    process = subprocess.Popen(command, env={**os.environ, 'OMP_NUM_THREADS': os.environ.get('OMP_NUM_THREADS', '1')})
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        raise SystemExit(f'{run.name} failed; its command was: {" ".join(command)}')
    metrics = json.loads((output / run.name / 'metrics.json').read_text())
    result = {name: metrics.get(name) for name in (
        *FIGURES, 'balanced_accuracy', 'num_parameters', 'num_tuned_parameters', 'num_train_images', 'wall_seconds')}
    result |= {'peak_mebibytes': usage.ru_maxrss / (1024 if sys.platform != 'darwin' else 1 << 20),
               'options': list(run.options), 'hardware': provenance()}
    record.write_text(json.dumps(result, indent=1))
    return result


def cell(values: list[float | None], digits: int = 1) -> str:
    found = [v for v in values if v is not None]
    if not found:
        return 'absent'
    spread = f' ± {statistics.stdev(found):.{digits}f}' if len(found) > 1 else ''
    return f'{statistics.mean(found):.{digits}f}{spread}'


def table(results: dict[tuple[str, str, str], list[dict]]) -> str:
    """Rows of Markdown: mean and deviation over seeds of each figure, parameters, seconds of training, peak memory."""
    lines = ['| network | tuning | loss | seeds | top1 | many | medium | few | trained parameters | seconds | MiB |',
             '| --- | --- | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: | ---: |']
    for (network, name, loss), runs in results.items():
        figures = ' | '.join(cell([r[f] for r in runs]) for f in FIGURES)
        tuned = runs[0]['num_tuned_parameters'] or runs[0]['num_parameters']
        seconds, memory = (statistics.mean(r[k] for r in runs) for k in ('wall_seconds', 'peak_mebibytes'))
        lines.append(
            f'| {network} | {name} | {loss} | {len(runs)} | {figures} | {tuned:,} | {seconds:.0f} | {memory:.0f} |')
    return '\n'.join(lines) + '\n'


def write(args: argparse.Namespace, results: dict[tuple[str, str, str], list[dict]]) -> None:
    entries = [{'network': n, 'tuning': t, 'loss': loss, 'runs': runs} for (n, t, loss), runs in results.items()]
    (args.output / 'results.json').write_text(json.dumps(entries, indent=1))
    images = next(iter(results.values()))[0]['num_train_images']
    pretraining_images = f'{args.pretrain_images} images a class, ' if args.pretrain_images else ''
    head = (f'Pretrained on {Path(args.pretrain).name}, {pretraining_images}{args.pretrain_epochs} epochs; tuned on '
            f'{Path(args.tune).name}, imbalance ratio 100, {images:,} images, {args.epochs} epochs; last epoch. MiB: '
            f'peak memory of the process. Commit, torch and hardware: '
            f'{", ".join(provenance().values())}.\n\n')
    (args.output / 'results.md').write_text(head + table(results))


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--pretrain', required=True, help='balanced set')
    parser.add_argument('--tune', required=True, help='set whose long-tailed subset is learnt')
    parser.add_argument('--networks', nargs='+', choices=NETWORKS, default=['vit', 'resnet'])
    parser.add_argument('--tunings', nargs='+', choices=TUNINGS, default=list(TUNINGS))
    parser.add_argument('--losses', nargs='+', default=['ce', 'balanced_softmax'])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--pretrain-epochs', type=int, default=30)
    parser.add_argument('--pretrain-images', type=int, help='images of each class in pretraining; default: all')
    parser.add_argument('--epochs', type=int, default=20)
    parser.add_argument('--images-per-class', type=int, help='images of the largest class; default: all')
    parser.add_argument('--output', type=Path, default=Path('finetune'))
    return parser.parse_args(argv)


def main() -> None:
    args = parse()
    args.output.mkdir(parents=True, exist_ok=True)
    results: dict[tuple[str, str, str], list[dict]] = {}
    for network in args.networks:
        if any(TUNINGS[name][2] for name in args.tunings):
            execute(pretraining(args, network), args.output)
        for name in args.tunings:
            for loss in args.losses:
                results[network, name, loss] = [
                    execute(tuning(args, network, name, loss, seed), args.output) for seed in args.seeds]
                write(args, results)
    print(table(results))


if __name__ == '__main__':
    main()

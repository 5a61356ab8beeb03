"""Accuracy of methods side by side: methods x ratios x seeds, each a run of ``train_lt.py``, nothing else.

    python benchmarks/accuracy.py --dataset hfds/PATH/cifar10 [--protocol quick] [--methods ce gala ...]
        [--ratios 100] [--seeds 0 1 2] [--jobs 2] [--output accuracy]

A run that was killed goes on where it stood; one that is finished is not repeated. Written to ``--output``: the run
folders, ``results.json`` (commit, options, seeds, hardware, every figure), ``results.md`` (the table: mean and standard
deviation over seeds, and the difference from the first method, paired by seed, with its 95% interval) and
``comparison.html``.

Protocols. 'quick' is made for two CPU cores: 1,000 images of the largest class, ``resnet20_cifar``, 30 epochs, batch
64, learning rate 0.1 by cosine after 3 epochs of warm-up, weight decay 5e-4, crop and flip. 'paper': 200 epochs of
``resnet32_cifar`` on the whole set with AutoAugment and Cutout. Both report the last epoch; nothing is chosen on the
test set.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch

ROOT = Path(__file__).parents[1]
FIGURES = ('top1', 'many', 'medium', 'few')

PROTOCOLS = {
    'quick': '--model resnet20_cifar --images-per-class 1000 --epochs 30 --warmup-epochs 3 -b 64 --lr 0.1 '
             '--opt momentum --weight-decay 5e-4',
    'paper': '--model resnet32_cifar --epochs 200 --warmup-epochs 5 -b 128 --lr 0.1 --opt momentum '
             '--weight-decay 5e-4 --aa cifar10 --cutout 16',
}
# options that make each method, after those of the protocol; published defaults of methods
METHODS = {
    'ce': '--loss ce',
    'focal': '--loss focal',
    'class_balanced': '--loss class_balanced',
    'balanced_softmax': '--loss balanced_softmax',
    'vs': '--loss vs',
    'ldam_drw': '--loss ldam --drw-epoch {drw}',
    'las': '--loss las',
    'gcl': '--loss gcl',
    'lade': '--loss lade',
    'gala': '--loss gala',
    'bcl': '--loss bcl',
    'class_balanced_sampler': '--loss ce --sampler class_balanced',
    'sam': '--loss ce --opt sam --opt-kwargs rho=0.05',
    'bs_sam': '--loss balanced_softmax --opt sam --opt-kwargs rho=0.05',
    'imbsam': '--loss ce --opt imbsam --opt-kwargs rho=0.05 eta=100',
    'ssesam': '--loss ce --opt ssesam --opt-kwargs rho_head=0.05 rho_tail=0.1 stage=0.7 eta=100',
    'focalsam': '--loss ce --opt focalsam',
    'ccsam': '--loss ce --opt ccsam --mixup 1.0',
    'gsa': '--loss balanced_softmax --opt gsa',
}


def plan(args):
    """(method, ratio, seed, options) of every run."""
    runs = []
    base = PROTOCOLS[args.protocol].split()
    epochs = args.epochs or int(base[base.index('--epochs') + 1])
    for ratio in args.ratios:
        for method in args.methods:
            own = METHODS[method].format(drw=int(0.8 * epochs)).split()
            for seed in args.seeds:
                name = f'{method}_r{ratio:g}_s{seed}'
                options = [
                    '--dataset', args.dataset, *base, *own, '--epochs', str(epochs), '--imbalance-ratio', str(ratio),
                    '--seed', str(seed), '--output', str(args.output), '--experiment', name, '--resume', 'auto',
                    '--quiet', '--split-rule', args.split_rule, '--checkpoint-every', '5']
                runs.append((method, ratio, seed, name, options))
    return runs


def train(run, args):
    *_, name, options = run
    folder = Path(args.output) / name
    if not (folder / 'metrics.json').is_file():
        threads = max(1, (os.cpu_count() or 1) // args.jobs)
        with open(Path(args.output) / f'{name}.log', 'a') as log:
            code = subprocess.call(
                [sys.executable, str(ROOT / 'train_lt.py'), *options], stdout=log, stderr=log,
                env=os.environ | {'OMP_NUM_THREADS': str(threads)})
        if code:
            print(f'{name}: failed, see {name}.log', flush=True)
            return None
    metrics = json.loads((folder / 'metrics.json').read_text())
    print(f'{name}: ' + '  '.join(f'{k} {show(metrics[k])}' for k in FIGURES), flush=True)
    return metrics


def show(value):
    return '-' if value is None else f'{value:.1f}'


def spread(values):
    """Mean and standard deviation, as text."""
    if not values or any(v is None for v in values):
        return 'absent'
    return f'{statistics.mean(values):.1f}' + (f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else '')


def paired(values, baseline):
    """Mean difference from the baseline over common seeds and its 95% interval (Student's t)."""
    differences = [values[s] - baseline[s] for s in values if s in baseline]
    if len(differences) < 2:
        return '-'
    from scipy import stats
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    mean = statistics.mean(differences)
    return f'{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]'


def table(results, methods, ratios):
    lines = []
    for ratio in ratios:
        lines += [f'Imbalance ratio {ratio:g}', '',
                  f'| method | seeds | {" | ".join(FIGURES)} | top-1 against {methods[0]}, paired |',
                  '| --- ' * (len(FIGURES) + 3) + '|']
        by_method = {m: {s: r for (m2, q, s), r in results.items() if (m2, q) == (m, ratio)} for m in methods}
        top = {m: {s: r['top1'] for s, r in runs.items()} for m, runs in by_method.items()}
        for method, runs in by_method.items():
            cells = [spread([r[k] for r in runs.values()]) for k in FIGURES]
            difference = '' if method == methods[0] else paired(top[method], top[methods[0]])
            lines.append(f'| `{method}` | {len(runs)} | {" | ".join(cells)} | {difference} |')
        lines.append('')
    return '\n'.join(lines)


def commit():
    answer = subprocess.run(['git', 'rev-parse', '--short', 'HEAD'], cwd=ROOT, capture_output=True, text=True)
    return answer.stdout.strip() or 'unknown'


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--protocol', default='quick', choices=sorted(PROTOCOLS))
    parser.add_argument('--methods', nargs='+', default=list(METHODS), choices=list(METHODS), metavar='METHOD')
    parser.add_argument('--ratios', nargs='+', type=float, default=[100.0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=None, help="instead of the protocol's")
    parser.add_argument('--split-rule', default='thirds')
    parser.add_argument('--jobs', type=int, default=max(1, os.cpu_count() or 1), help='runs side by side')
    parser.add_argument('--output', type=Path, default=Path('accuracy'))
    args = parser.parse_args()
    args.output.mkdir(parents=True, exist_ok=True)
    runs = plan(args)
    # seeds outermost, so that a table over all methods stands as early as possible
    runs.sort(key=lambda run: args.seeds.index(run[2]))
    with ThreadPoolExecutor(args.jobs) as pool:
        metrics = list(pool.map(lambda run: train(run, args), runs))
    results = {run[:3]: m for run, m in zip(runs, metrics) if m is not None}
    (args.output / 'results.json').write_text(json.dumps({
        'commit': commit(), 'protocol': args.protocol, 'options': PROTOCOLS[args.protocol],
        'methods': {m: METHODS[m] for m in args.methods}, 'seeds': args.seeds, 'epochs': args.epochs,
        'hardware': f'{platform.machine()}, {os.cpu_count()} cores, '
                    + (torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'),
        'runs': [{'method': m, 'ratio': q, 'seed': s, **{k: r[k] for k in (*FIGURES, 'ece', 'wall_seconds')}}
                 for (m, q, s), r in results.items()]}, indent=1))
    text = table(results, args.methods, args.ratios)
    (args.output / 'results.md').write_text(text)
    print(text)
    folders = [args.output / run[3] for run in runs if run[:3] in results]
    if folders:
        subprocess.call([
            sys.executable, '-m', 'timm_lt.evaluate', 'compare', *map(str, folders), '--output',
            str(args.output / 'comparison.html')])


if __name__ == '__main__':
    main()

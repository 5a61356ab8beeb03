"""Accuracy of methods side by side: methods x ratios x seeds, each a run of ``train_lt.py``, nothing else.

    python benchmarks/accuracy.py --dataset hfds/PATH/cifar10 [--protocol quick] [--methods ce gala ...]
        [--ratios 100] [--seeds 0 1 2] [--jobs 2] [--output accuracy]

A run that was killed goes on where it stood; one that is finished is not repeated. Written to ``--output``: the run
folders, ``results.json`` (commit, options, seeds, hardware, every figure, seconds of the command and how many runs it
made), ``results.md`` (the table: mean and standard deviation over seeds, and the difference from the first method,
paired by seed, with its 95% interval), ``results.png`` and ``comparison.html``.

Protocols. 'quick' is made for two CPU cores: 1,000 images of the largest class, ``resnet20_cifar``, 20 epochs, batch
64, learning rate 0.1 by cosine after 2 epochs of warm-up, set at every step, weight decay 5e-4, crop and flip,
bfloat16. 'paper': each method's recipe of ``hub_configs``: ``resnet32_cifar`` on the whole set for the recipe's epochs.
Both report the last epoch; nothing is chosen on the test set. Without ``--methods``, 'quick' takes every method of
``_methods.py`` (81 runs took two hours of two cores), but not the variants of CC-SAM and GSA: ``--methods
balanced_softmax gsa variants``.
"""

import argparse
import json
import os
import shlex
import statistics
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import torch
import yaml
from _methods import METHODS, QUICK
from _report import commit, provenance

ROOT = Path(__file__).parents[1]
FIGURES = ('top1', 'many', 'medium', 'few')


@dataclass
class Run:
    method: str
    ratio: float
    seed: int
    name: str
    options: list[str]
    first: 'Run | None' = None

    def __post_init__(self):
        self.ended = Event()


def recipe_of(method, recipes):
    """File of a method's recipe for a data set; None where there is none."""
    path = ROOT / 'hub_configs' / f'{recipes}-{METHODS[method].recipe}.yaml'
    return path if path.is_file() else None


def methods_of(args):
    """The methods of the command, in its order, each once."""
    if args.methods:
        variants = [name for name, method in METHODS.items() if method.variant]
        return list(dict.fromkeys(m for name in args.methods for m in (variants if name == 'variants' else [name])))
    if args.protocol == 'paper':
        return [name for name in METHODS if recipe_of(name, args.recipes)]
    return [name for name, method in METHODS.items() if not method.variant]


def options_of(method, args):
    """What ``train_lt.py`` is given for a method under the protocol, without data, ratio and seed."""
    own = METHODS[method]
    if args.protocol == 'paper':
        path = recipe_of(method, args.recipes)
        if path is None:
            raise SystemExit(f'accuracy.py: {method} has no recipe for {args.recipes}; those with one: '
                             + ' '.join(m for m in METHODS if recipe_of(m, args.recipes)))
        return ['--config', str(path)]
    base = QUICK.split()
    epochs = args.epochs or int(base[base.index('--epochs') + 1])
    text = own.options.format(drw=int(0.8 * epochs), stage2=max(1, epochs // 4), regroup=max(1, epochs // 5))
    return [*base, *text.split(), '--epochs', '0' if own.after else str(epochs), '--split-rule', args.split_rule]


def plan(args):
    """Every run, seeds outermost, so that a table over all methods stands as early as possible."""
    runs = {}
    for seed in args.seeds:
        for ratio in args.ratios:
            for method in args.methods:
                name = f'{method}_r{ratio:g}_s{seed}'
                options = [
                    *options_of(method, args), '--dataset', args.dataset, '--imbalance-ratio', f'{ratio:g}', '--seed',
                    str(seed), *args.extra]
                first = None
                if METHODS[method].after and args.protocol == 'quick':
                    first = runs.get(f'{METHODS[method].after}_r{ratio:g}_s{seed}')
                    if first is None:
                        raise SystemExit(
                            f'accuracy.py: {method} starts on {METHODS[method].after}: name that before it')
                    checkpoint = args.output / first.name / 'hub' / 'model.safetensors'
                    options += ['--initial-checkpoint', str(checkpoint)]
                runs[name] = Run(method, ratio, seed, name, options, first)
    return list(runs.values())


def threads_of(args):
    return args.threads or max(1, (os.cpu_count() or 1) // args.jobs)


def train(run, args):
    try:
        if run.first is not None:
            run.first.ended.wait()
        return train_now(run, args)
    finally:
        run.ended.set()


def train_now(run, args):
    folder = args.output / run.name
    if not (folder / 'metrics.json').is_file():
        if args.finished:
            return None
        command = [
            sys.executable, str(ROOT / 'train_lt.py'), *run.options, '--output', str(args.output), '--experiment',
            run.name, '--resume', 'auto', '--quiet', '--checkpoint-every', '5']
        env = os.environ | {'OMP_NUM_THREADS': str(threads_of(args))}
        with open(args.output / f'{run.name}.log', 'a') as log:
            log.write(f'commit {commit()}\n')
            log.flush()
            code = subprocess.call(command, stdout=log, stderr=log, env=env)
        if code:
            print(f'{run.name}: failed, see {run.name}.log', flush=True)
            return None
    metrics = json.loads((folder / 'metrics.json').read_text())
    print(f'{run.name}: ' + '  '.join(f'{k} {show(metrics[k])}' for k in FIGURES), flush=True)
    return metrics


def show(value):
    return '-' if value is None else f'{value:.1f}'


def rows_of(run, metrics):
    """(label, figures) of a run: its own, and those of its first stage or with its correction."""
    if 'stage1' in metrics and run.first is None:
        yield f'{run.method}, stage 1', metrics['stage1']
        yield f'{run.method}, stage 2', metrics
        return
    yield run.method, metrics
    if 'corrected' in metrics:
        yield f'{run.method}, {metrics["corrected"]["label"]}', metrics['corrected']


def spread(values):
    """Mean and standard deviation, as text."""
    if not values or any(v is None for v in values):
        return 'absent'
    return f'{statistics.mean(values):.1f}' + (f' ± {statistics.stdev(values):.1f}' if len(values) > 1 else '')


def paired(values, baseline):
    """Mean difference from the baseline over common seeds and half of its 95% interval (Student's t); or None."""
    differences = [values[s] - baseline[s] for s in values if s in baseline]
    if len(differences) < 2:
        return None
    from scipy import stats
    half = stats.t.ppf(0.975, len(differences) - 1) * statistics.stdev(differences) / len(differences) ** 0.5
    return statistics.mean(differences), half


def interval(mean, half):
    return f'{mean:+.1f} [{mean - half:+.1f}, {mean + half:+.1f}]'


def published(method, ratio, recipes):
    """Top-1 that the method's paper states, from the recipe; None where there is none."""
    path = recipe_of(method, recipes)
    if path is None:
        return None
    figures = yaml.safe_load(path.read_text()).get('published') or {}
    return (figures.get('top1') or {}).get(ratio)


def table(rows, args):
    """Markdown; ``rows``: (ratio, label) to seed to figures, with the method under 'method'."""
    lines = []
    for ratio in args.ratios:
        mine = {label: runs for (q, label), runs in rows.items() if q == ratio}
        if not mine:
            continue
        reference = next(iter(mine))
        baseline = {s: r['top1'] for s, r in mine[reference].items()}
        lines += [f'Imbalance ratio {ratio:g}', '',
                  f'| method | seeds | {" | ".join(FIGURES)} | against {reference}, paired | published |',
                  '| --- ' * (len(FIGURES) + 4) + '|']
        for label, runs in mine.items():
            cells = [spread([r[k] for r in runs.values()]) for k in FIGURES]
            difference = None if label == reference else paired({s: r['top1'] for s, r in runs.items()}, baseline)
            text = '' if difference is None else interval(*difference)
            # a first stage or an added correction is not what the figure of the recipe stands for
            figure = published(label, ratio, args.recipes) if label in METHODS else (
                published(label.split(',')[0], ratio, args.recipes) if label.endswith('stage 2') else None)
            lines.append(f'| `{label}` | {len(runs)} | {" | ".join(cells)} | {text} | {figure or ""} |')
        lines.append('')
    return '\n'.join(lines)


def plot(rows, args):
    """Mean and standard deviation of top-1, and the splits, one line a method."""
    import matplotlib
    matplotlib.use('Agg')
    import matplotlib.pyplot as plt
    for ratio in args.ratios:
        mine = {label: list(runs.values()) for (q, label), runs in rows.items() if q == ratio}
        if not mine:
            continue
        fig, (left, right) = plt.subplots(1, 2, sharey=True, figsize=(8, 0.8 + 0.22 * len(mine)), layout='constrained')
        places = range(len(mine))
        means = [statistics.mean(r['top1'] for r in runs) for runs in mine.values()]
        errors = [statistics.stdev(r['top1'] for r in runs) if len(runs) > 1 else 0 for runs in mine.values()]
        left.errorbar(means, places, xerr=errors, fmt='o', color='black', markersize=4, capsize=2)
        left.axvline(means[0], color='0.6', linewidth=1)
        for name, marker, color in (('many', 's', '0.1'), ('medium', '^', '0.45'), ('few', 'o', '0.7')):
            points = [(statistics.mean(r[name] for r in runs), i) for i, runs in enumerate(mine.values())
                      if all(r[name] is not None for r in runs)]
            right.plot([p[0] for p in points], [p[1] for p in points], marker, color=color, label=name, markersize=4)
        left.set(yticks=list(places), yticklabels=list(mine), xlabel='top-1 (%), mean ± deviation over seeds')
        left.invert_yaxis()
        right.set(xlabel='accuracy of the split (%)')
        right.legend(fontsize='small', ncols=3, loc='lower center', bbox_to_anchor=(0.5, 1.0), frameon=False)
        for axis in (left, right):
            axis.grid(axis='x', color='0.9')
            axis.tick_params(labelsize='small')
        fig.savefig(args.output / f'results_r{ratio:g}.png', dpi=110)
        plt.close(fig)


def commits_of(runs, args):
    """The commits at which the runs were made, from their logs."""
    logs = [args.output / f'{run.name}.log' for run in runs]
    lines = [line for log in logs if log.is_file() for line in log.read_text().splitlines()]
    return sorted({line.removeprefix('commit ') for line in lines if line.startswith('commit ')})


def write_results(runs, metrics, rows, args, made):
    device = 'cuda' if torch.cuda.is_available() else 'cpu'
    (args.output / 'results.json').write_text(json.dumps({
        **provenance(device, threads_of(args)), 'commits of the runs': commits_of(runs, args),
        'runs side by side': args.jobs, 'this command': made, 'protocol': args.protocol,
        'dataset': args.dataset.rsplit('/', 1)[-1], 'seeds': args.seeds,
        'recipes': {
            m: shlex.join([*options_of(m, args), *args.extra]).replace(f'{ROOT}/', '') for m in args.methods},
        'starts_on': {m: METHODS[m].after for m in args.methods if METHODS[m].after},
        'rows': [
            {'row': label, 'ratio': ratio, 'seed': seed, **{k: figures[k] for k in (*FIGURES, 'ece')}}
            for (ratio, label), by_seed in rows.items() for seed, figures in by_seed.items()],
        'wall_seconds': {run.name: round(m['wall_seconds'], 1) for run, m in zip(runs, metrics) if m is not None},
    }, indent=1) + '\n')


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument('--dataset', required=True)
    parser.add_argument('--protocol', default='quick', choices=('quick', 'paper'))
    parser.add_argument(
        '--recipes', default='cifar10_lt',
        help="data set's name in hub_configs: recipes of 'paper', published figures; 'none': no figures")
    parser.add_argument(
        '--methods', nargs='+', default=None, choices=[*METHODS, 'variants'], metavar='METHOD',
        help="'variants': all that other methods' parts and settings are measured by")
    parser.add_argument('--ratios', nargs='+', type=float, default=[100.0])
    parser.add_argument('--seeds', nargs='+', type=int, default=[0, 1, 2])
    parser.add_argument('--epochs', type=int, default=None, help="of 'quick', instead of 20")
    parser.add_argument('--split-rule', default='thirds')
    parser.add_argument('--jobs', type=int, default=max(1, os.cpu_count() or 1), help='runs side by side')
    parser.add_argument('--threads', type=int, default=0, help="of a run; 0: the machine's, shared among the jobs")
    parser.add_argument('--finished', action='store_true', help='start nothing, report the runs that have ended')
    parser.add_argument('--output', type=Path, default=Path('accuracy'))
    parser.add_argument('--extra', nargs=argparse.REMAINDER, default=[], help='further options for every run; last')
    args = parser.parse_args()
    known = {path.stem.partition('-')[0] for path in (ROOT / 'hub_configs').glob('*-*.yaml')}
    if args.recipes not in known and (args.recipes != 'none' or args.protocol == 'paper'):
        parser.error(f'--recipes {args.recipes}: hub_configs has ' + ' '.join(sorted(known)))
    args.methods = methods_of(args)
    args.output.mkdir(parents=True, exist_ok=True)
    runs = plan(args)
    start, before = time.monotonic(), [(args.output / run.name / 'metrics.json').is_file() for run in runs]
    with ThreadPoolExecutor(args.jobs) as pool:
        metrics = list(pool.map(lambda run: train(run, args), runs))
    rows = {}
    for run, m in zip(runs, metrics):
        for label, figures in rows_of(run, m) if m is not None else ():
            rows.setdefault((run.ratio, label), {})[run.seed] = figures
    number = sum(m is not None and not had for m, had in zip(metrics, before))
    made = {'runs': number, 'seconds': round(time.monotonic() - start)}
    write_results(runs, metrics, rows, args, made)
    text = table(rows, args)
    (args.output / 'results.md').write_text(text)
    print(text)
    print(f'{number} of {len(runs)} runs made in {made["seconds"] / 60:.0f} min')
    plot(rows, args)
    folders = [args.output / run.name for run, m in zip(runs, metrics) if m is not None]
    if folders:
        subprocess.call([
            sys.executable, '-m', 'timm_lt.evaluate', 'compare', *map(str, folders), '--output',
            str(args.output / 'comparison.html')])
    return 0 if args.finished or all(m is not None for m in metrics) else 1


if __name__ == '__main__':
    sys.exit(main())

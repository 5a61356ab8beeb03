"""Checkpoints that come with the package: made from finished runs, and evaluated again.

    python benchmarks/ship.py make RUN NAME --cost 200 --dataset hfds/PATH/cifar10 [--copy 'JPEG copy of CIFAR-10']
    python benchmarks/ship.py check [NAME ...] --dataset hfds/PATH/cifar10

'make' stores the weights of a run in half precision and evaluates that file on the run's test part, in float32.
Figures, card and plots are of the stored file. It refuses a file whose weights take 1 MB or more, or whose figures
differ by more than 0.1 points from those of the run's weights, evaluated alike. 'check' evaluates shipped files again
and ends with status 1 if a figure differs from the card's. The digits checkpoint is checked on the digits, whatever
``--dataset`` says.
"""

import argparse
import json
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import yaml

import timm_lt
from timm_lt.hub.folder import write_hub_card, write_hub_folder
from timm_lt.hub.loading import SHIPPED

COMPARED = ('top1', 'balanced_accuracy', 'many', 'medium', 'few')
ROUNDING = 0.1  # points that half precision may change
REPEATED = 0.02  # points between two machines: two of 10,000 images
WEIGHTS_LIMIT = 1_000_000  # bytes
PLOTS = ('accuracy_by_class_size.png', 'training_curves.png')
OF_THE_FILES = ('args.yaml', 'class_distribution.json', 'metrics.json', 'posthoc.json')


def evaluate(folder: Path, dataset: str, split_rule: str, output: Path) -> dict:
    """Contents of ``metrics.json`` of an evaluation of a checkpoint folder on the test part of a data set."""
    command = [
        sys.executable, '-m', 'timm_lt.evaluate', '--checkpoint', str(folder), '--dataset', dataset, '--split', 'test',
        '--split-rule', split_rule, '--output', str(output)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return json.loads((output / 'metrics.json').read_text())


def difference(a: dict, b: dict) -> float:
    """Largest difference of the compared figures, in points."""
    return max(abs(a[key] - b[key]) for key in COMPARED if a[key] is not None)


def make(run: Path, name: str, dataset: str, cost: int, copy: str | None) -> None:
    """Write the shipped folder of a finished run, whole or not at all."""
    measured = json.loads((run / 'metrics.json').read_text())
    with tempfile.TemporaryDirectory() as temporary:
        work = Path(temporary) / 'run'
        work.mkdir()
        for file in OF_THE_FILES:
            if (run / file).is_file():
                shutil.copy(run / file, work / file)
        shutil.copytree(run / 'hub', work / 'hub')
        config = json.loads((run / 'hub' / 'config.json').read_text())
        model = timm_lt.hub.load(run / 'hub').model
        _name_the_data(work, copy)
        folder = write_hub_folder(
            work, model, model_args=config.get('model_args'), data_config=_data_config(config), dtype='float16',
            card=False)
        stored = evaluate(folder, dataset, measured['split_rule'], Path(temporary) / 'evaluation')
        unrounded = evaluate(run / 'hub', dataset, measured['split_rule'], Path(temporary) / 'unrounded')
        changed = difference(unrounded, stored)
        size = (folder / 'model.safetensors').stat().st_size
        if changed > ROUNDING or size >= WEIGHTS_LIMIT:
            raise SystemExit(
                f'ship.py: {name}: figures change by {changed:.2f} points (allowed: {ROUNDING}), weights take '
                f'{size} bytes (allowed: under {WEIGHTS_LIMIT})')
        metrics = json.loads((folder / 'metrics.json').read_text())
        metrics |= {key: stored[key] for key in stored if key in metrics and key not in ('protocol', 'seed', 'model')}
        metrics['cost'] = cost
        metrics['protocol'] |= {
            'stored_weights': f'float16; the figures are of this file, in float32; rounding changed them by '
                              f'{changed:.2f} points at most',
            'top1_of_the_run': f'{measured["top1"]:.2f}, precision {measured["protocol"]["precision"]}'}
        (folder / 'metrics.json').write_text(json.dumps(metrics, indent=1) + '\n')
        (work / 'plots').mkdir()
        for plot in PLOTS:
            shutil.copy(run / 'plots' / plot, work / 'plots' / plot)
        shutil.copy(folder / 'metrics.json', work / 'metrics.json')
        write_hub_card(work)
        _name_the_checkpoint(folder / 'README.md', name)
        shutil.rmtree(SHIPPED / name, ignore_errors=True)
        shutil.copytree(folder, SHIPPED / name)
    print(f'{name}: top-1 {stored["top1"]:.2f}, {changed:.2f} points from the run at most, {size / 1e6:.2f} MB')


def _name_the_data(work: Path, copy: str | None) -> None:
    """Replace the path of the machine by the name that the recipe gives the data set."""
    options = yaml.safe_load((work / 'args.yaml').read_text())
    name = (options.get('hub') or {}).get('dataset')
    options['dataset'] = f'hfds/{name}' if name else options['dataset']
    (work / 'args.yaml').write_text(yaml.safe_dump(options))
    metrics = json.loads((work / 'metrics.json').read_text())
    metrics['dataset'] = options['dataset']
    if copy:
        metrics['protocol']['dataset_copy'] = copy
    (work / 'metrics.json').write_text(json.dumps(metrics, indent=1) + '\n')


def _name_the_checkpoint(card: Path, name: str) -> None:
    """Have the card's Python lines load the shipped checkpoint."""
    by_timm = f"f'local-dir:{{timm_lt.hub.shipped(\"{name}\")}}'"
    text = card.read_text().replace("'hf-hub:USER/NAME'", by_timm).replace("'USER/NAME'", f"'{name}'")
    card.write_text(re.sub(r'\) {2,}#', ')  #', text))


def _data_config(config: dict) -> dict:
    given = config['pretrained_cfg']
    keys = ('input_size', 'mean', 'std', 'interpolation', 'crop_pct', 'crop_mode')
    return {key: tuple(v) if isinstance(v := given[key], list) else v for key in keys if key in given}


def check(names: list[str], dataset: str) -> int:
    """Evaluate shipped files again; returns how many differ from their cards."""
    wrong = 0
    for name in names or timm_lt.hub.shipped():
        folder = timm_lt.hub.shipped(name)
        written = json.loads((folder / 'metrics.json').read_text())
        data = 'timm_lt/digits' if name == 'digits' else dataset
        with tempfile.TemporaryDirectory() as temporary:
            measured = evaluate(folder, data, written['split_rule'], Path(temporary) / 'evaluation')
        changed = difference(written, measured)
        wrong += changed > REPEATED
        print(f'{name}: card {written["top1"]:.2f}, again {measured["top1"]:.2f}, largest difference {changed:.2f}')
    return wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest='command', required=True)
    command = commands.add_parser('make')
    command.add_argument('run', type=Path)
    command.add_argument('name')
    command.add_argument('--cost', type=int, required=True, help='epochs x views x passes of the run')
    command.add_argument('--copy', default=None, help='what the copy of the data set is, for the card')
    command.add_argument('--dataset', required=True)
    command = commands.add_parser('check')
    command.add_argument('names', nargs='*', metavar='NAME')
    command.add_argument('--dataset', required=True)
    args = parser.parse_args()
    if args.command == 'check':
        return 1 if check(args.names, args.dataset) else 0
    make(args.run, args.name, args.dataset, args.cost, args.copy)
    return 0


if __name__ == '__main__':
    sys.exit(main())

"""Snippets: every Python and shell block of README and documentation runs, reduced as :func:`reduced` says.

A block under ``<!-- not run: REASON -->`` needs the network, GPUs or several processes. Its commands are parsed only.
"""

import json
import re
import shlex

import numpy as np
import pytest
from accelerate.commands.launch import launch_command_parser
from paths import ROOT
from PIL import Image

from timm_lt import _registry, cli, training
from timm_lt.evaluate import cli as evaluation
from timm_lt.hub import __main__ as hub_command
from timm_lt.training.options import parse_options
from timm_lt.training.outputs import RunFolder

PAGES = [ROOT / 'README.md', *sorted((ROOT / 'docs').rglob('*.md'))]
BLOCK = re.compile(r'^(?:<!-- not run: (?P<reason>.+) -->\n)?```(?P<language>\w+)\n(?P<text>.*?)^```$', re.M | re.S)
# the two commands of the README that `.ci/run` and a fresh machine run as they are
FRESH_MACHINE = 'python3 -m venv .venv && '
CLASSES = {'ant': 8, 'bee': 5, 'cow': 3}


def blocks(language):
    return [pytest.param(found['text'], found['reason'], id=f'{path.stem}-{number}')
            for path in PAGES
            for number, found in enumerate(BLOCK.finditer(path.read_text()))
            if found['language'] == language]


def reduced(options):
    """Options of a training command with one epoch of a small network on few small images, without the network."""
    options = list(options)
    if '--pretrained' in options:
        at = options.index('--pretrained')
        options[at:at + 1] = ['--initial-checkpoint', 'output/mine/hub/model.safetensors']
    if '--drop-path' in options:  # the small network has none
        at = options.index('--drop-path')
        del options[at:at + 2]
    if not {'--data-dir', '--dataset', '--config'} & set(options):
        options += ['--images-per-class', '20', '--imbalance-ratio', '4']
    given = dict(zip(options, options[1:]))
    head = '--cosine-classifier' if '--cosine-classifier' in options else '--no-cosine-classifier'
    epochs = '0' if given.get('--epochs') == '0' else '1'
    options += ['--model', 'resnet20_cifar', head, '--epochs', epochs, '--warmup-epochs', '0', '-b', '16', '--workers',
                '0', '--quiet']
    return options + (['--stage2-epochs', '1'] if '--stage2' in options else [])


def commands(text):
    """Commands of a shell block as lists of words; a loop over seeds gives its first turn."""
    for line in text.replace('\\\n', ' ').splitlines():
        line = line.partition(' #')[0].strip()
        loop = re.fullmatch(r'for (\w+) in (\w+).*?; do (.*); done', line)
        if loop:
            line = loop[3].replace(f'${loop[1]}', loop[2])
        if line and not line.startswith('#'):
            yield shlex.split(line)


def split_command(words):
    """The program of a command and its options."""
    for program, starts in {
        'train': (['python', 'train_lt.py'],),
        'evaluate': (['python', '-m', 'timm_lt.evaluate'],),
        'hub': (['python', '-m', 'timm_lt.hub'],),
        'command': (['timm-lt'], ['python', '-m', 'timm_lt']),
    }.items():
        for start in starts:
            if words[:len(start)] == start:
                return program, words[len(start):]
    if 'train_lt.py' in words and words[0] in ('accelerate', 'python'):
        at = words.index('train_lt.py')
        if words[:2] == ['accelerate', 'launch']:
            launch_command_parser().parse_args(words[2:at + 1])
        else:
            assert words[:3] == ['python', '-m', 'torch.distributed.run']
        return 'train', words[at + 1:]
    raise AssertionError(f'no rule for the command {shlex.join(words)}')


def run_command(name, options):
    """A command of timm-lt; exports are torch.export, which costs a tenth of ONNX."""
    if name in ('train', 'evaluate') and '--help' not in options:
        return run(name, options)
    if name == 'predict':
        options = [*options, '--workers', '0']
    return cli.main([name, *(option.replace('.onnx', '.pt2') for option in options)])


def run(program, options):
    if program == 'command':
        return run_command(options[0], options[1:])
    if program == 'train':
        return training.main(reduced(options))
    if program == 'hub':
        assert options[0] == 'list'
        return hub_command.main(options)
    few = [] if options[0] == 'report' else ['--bootstrap', '20']
    return evaluation.main([*options, *few])


def no_report(folder):
    """Takes the place of the report of a run, whose pictures cost more than the run; tests/evaluate draws it."""


def parse(program, options):
    """Check a command without running it."""
    if program == 'command':
        program, options = options[0], options[1:]
        if program not in ('train', 'evaluate', 'hub'):
            command = next(c for c in cli.COMMANDS if c.name == program)
            command.build_parser().parse_args(options[:options.index('>')] if '>' in options else options)
            return
    if program == 'train':
        parse_options(options)
    elif program == 'hub':
        hub_command.build_parser().parse_args(options)
    else:
        evaluation.build_parser().parse_args(options)


@pytest.fixture(autouse=True)
def fresh_state(monkeypatch):
    """Methods that a page registers leave with it, and so does the state of Accelerate."""
    for registry in vars(_registry).values():
        if isinstance(registry, _registry.Registry):
            monkeypatch.setattr(registry, '_infos', dict(registry._infos))
            monkeypatch.setattr(registry, '_listeners', [])
    monkeypatch.setattr(RunFolder, 'write_report', no_report)
    yield
    from accelerate.state import AcceleratorState
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    """The files that the pages speak of: images, lists, predictions and the runs 'mine', 'balanced' and 'plain'."""
    root, generator = tmp_path_factory.mktemp('pages'), np.random.default_rng(0)
    lines = []
    for folder, part, names in (
            ('my_images', 'train', CLASSES), ('my_images', 'val', dict.fromkeys(CLASSES, 3)),
            ('other_images', 'test', {'moon': 4})):
        for label, (name, count) in enumerate(names.items()):
            (root / folder / part / name).mkdir(parents=True)
            for k in range(count):
                pixels = generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)
                Image.fromarray(pixels).save(root / folder / part / name / f'{k}.png')
                lines += [f'{part}/{name}/{k}.png {label}'] if part == 'train' else []
    (root / 'new_photos' / 'inner').mkdir(parents=True)
    for name in ('1.jpg', 'inner/3.jpg'):
        Image.fromarray(generator.integers(0, 255, (40, 32, 3)).astype(np.uint8)).save(root / 'new_photos' / name)
    (root / 'new_photos' / '2.jpg').write_text('no image')
    (root / 'my_images' / 'train.txt').write_text('\n'.join(lines) + '\n')
    (root / 'class_stats.json').write_text(json.dumps({'pos_counts': [500, 50, 5], 'num_samples': 555}))
    (root / 'predictions.csv').write_text('prediction,target\n0,0\n1,1\n2,2\n0,2\n')
    (root / 'hub_configs').symlink_to(ROOT / 'hub_configs')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setattr(RunFolder, 'write_report', no_report)
        for name, data in (('mine', ['--data-dir', 'my_images']), ('balanced', []), ('plain', ['--loss', 'ce'])):
            assert training.main(reduced([*data, '--experiment', name])) == 0
    return root


@pytest.mark.parametrize('text, reason', blocks('python'))
def test_python_blocks_run(text, reason, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    exec(compile(text, 'snippet', 'exec'), {'__name__': 'snippet'})


@pytest.mark.parametrize('text, reason', blocks('bash'))
def test_shell_blocks_run(text, reason, workplace, monkeypatch):
    monkeypatch.chdir(workplace)
    if text.startswith(FRESH_MACHINE):
        return
    for words in commands(text):
        if words[:2] == ['hf', 'auth']:
            assert reason
            continue
        program, options = split_command(words)
        if reason:
            parse(program, options)
        else:
            assert run(program, options) == 0, shlex.join(words)


def test_the_commands_for_a_fresh_machine_stay():
    lines = (ROOT / 'README.md').read_text().splitlines()
    fresh = [line for line in lines if line.startswith(FRESH_MACHINE)]
    assert fresh == [
        FRESH_MACHINE + '.venv/bin/pip install -e . && .venv/bin/accelerate launch train_lt.py',
        FRESH_MACHINE + ".venv/bin/pip install -e '.[test]' && .venv/bin/python -m pytest"]
    pattern = re.search(r"grep -m1 -E '(.*)' README.md", (ROOT / '.ci' / 'run').read_text())[1]
    assert [line for line in lines if re.search(pattern, line)] == fresh[1:]


def test_blocks_are_of_a_kind_that_is_run():
    kinds = {found['language'] for path in PAGES for found in BLOCK.finditer(path.read_text())}
    assert kinds <= {'python', 'bash', 'text'}

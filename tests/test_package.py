"""Promises of the package as a whole: import, layout, documentation."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

import timm_lt
from timm_lt._registry import LOSSES, OPTIMIZERS, SAMPLERS, STAGE2

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / 'timm_lt'
FILES = sorted(PACKAGE.rglob('*.py'))


def test_importing_loads_nothing_but_torch_and_timm_and_changes_no_global_state():
    code = '''
import random, sys, timm, torch, numpy
before = set(sys.modules)
def states():
    generators = random.getstate(), numpy.random.get_state()[1].tolist(), torch.get_rng_state().tolist()
    return *generators, torch.get_num_threads()
expected = states()
import timm_lt
assert states() == expected
new = {name.split('.')[0] for name in set(sys.modules) - before}
print(sorted(new & {'accelerate', 'datasets', 'sklearn', 'matplotlib', 'torchmetrics', 'scipy', 'pandas'}))
'''
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


def imports_of(path):
    """Dotted names of the timm_lt modules that a file imports at its top level."""
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1]
            module = base + tuple((node.module or '').split('.')) if node.module else base
            found |= {'.'.join(module)} if node.module else {'.'.join(module + (a.name,)) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or '')
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


ALLOWED = {
    'losses': {'losses'}, 'samplers': {'samplers'}, 'models': {'models'}, 'optim': {'optim', 'losses'},
    'data': {'data'}, 'evaluate': {'evaluate', 'data', 'gkp', 'models', 'posthoc'},
}


@pytest.mark.parametrize('part', sorted(ALLOWED))
def test_imports_go_one_way(part):
    everywhere = {'class_distribution', 'timm_lt'}
    for path in sorted((PACKAGE / part).rglob('*.py')):
        for name in imports_of(path):
            if name.startswith('timm_lt.'):
                target = name.split('.')[1]
                assert target.startswith('_') or target in ALLOWED[part] | everywhere, f'{path.name} imports {name}'
            assert part == 'evaluate' or name.split('.')[0] != 'accelerate', f'{path.name} imports accelerate'


def test_one_file_alone_touches_what_timm_keeps_private():
    for path in FILES:
        if path.name not in ('_timm_hooks.py', '_factory.py'):
            private = [n for n in imports_of(path) if re.match(r'timm\..*\._', n)]
            assert not private, f'{path.name} imports {private}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_files_are_tidy(path):
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree) or path.name == '_version.py', 'a module says what it is'
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id not in ('print', 'breakpoint') or path.name == '__main__.py', node.lineno
        if isinstance(node, ast.ImportFrom):
            assert all(a.name != '*' for a in node.names)


@pytest.mark.parametrize('registry', [LOSSES, SAMPLERS, OPTIMIZERS, STAGE2], ids=lambda r: r.kind)
def test_every_method_names_its_paper_and_stands_in_the_readme(registry):
    rows = [line for line in (ROOT / 'README.md').read_text().splitlines() if line.startswith('|')]
    for info in registry.infos():
        assert info.description
        assert any(f'`{info.name}`' in row for row in rows), f'{registry.kind} {info.name} has no row in the README'


def test_every_network_stands_in_the_readme():
    text = (ROOT / 'README.md').read_text()
    assert all(f'`{name}`' in text for name in timm_lt.list_networks())


def test_the_readmes_python_example_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = (ROOT / 'README.md').read_text()
    code = re.search(r'```python\n(.*?)```', text, re.DOTALL).group(1)
    exec(compile(code, 'README.md', 'exec'), {})

"""Promises of the package as a whole: import, layout, documentation."""

import ast
import importlib
import re
import subprocess
import sys
from pathlib import Path

import pytest
from sentences import number_of_words, sentences

import timm_lt
from timm_lt._registry import FINETUNING, LOSSES, MIXINGS, OPTIMIZERS, POSTHOC, SAMPLERS, SECOND_STAGES

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
assert states() == expected
new = {name.split('.')[0] for name in set(sys.modules) - before}
print(sorted(new & {'accelerate', 'datasets', 'sklearn', 'matplotlib', 'torchmetrics', 'scipy', 'pandas'}))
'''
    result = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == '[]'


def imports_of(path):
    """Dotted names of the modules that a file imports, at its top level and inside functions."""
    package = path.relative_to(ROOT).with_suffix('').parts[:-1]
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = package[:len(package) - node.level + 1]
            module = base + tuple((node.module or '').split('.')) if node.module else base
            found |= {'.'.join(module)} if node.module else {'.'.join(module + (a.name,)) for a in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(node.module or '')
        elif isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
    return found


# Rooms that a room may import, besides itself and the bottom: the modules with a leading underscore and
# class_distribution. A room that is not named here as an import of another one lies above it.
ARROWS = {
    'losses': {'models'}, 'samplers': set(), 'models': set(), 'data': {'samplers'},
    'optim': {'losses'}, 'posthoc': {'models'}, 'gkp': {'optim'}, 'two_stage': {'losses', 'models', 'posthoc'},
    'finetune': {'models', 'two_stage'},
    'hub': {'data', 'models', 'posthoc'}, 'evaluate': {'data', 'gkp', 'hub'},
    'training': {
        'data', 'evaluate', 'finetune', 'gkp', 'hub', 'losses', 'models', 'optim', 'posthoc', 'samplers', 'two_stage'},
    'predict': {'data', 'evaluate', 'hub'},
    'export': {'data', 'hub', 'posthoc', 'predict'},
    'cli': {'evaluate', 'export', 'hub', 'predict', 'training'},
}
ARROWS_OF_EVALUATE = {
    'metrics': set(), 'landscape': set(), 'reports': {'metrics'}, 'cli': {'metrics', 'landscape', 'reports'}}
BOTTOM = {path.stem for path in PACKAGE.glob('_*.py')} | {'class_distribution'}


def rooms_imported(path, depth):
    """Names at ``depth`` below the package of the modules of this package that a file imports."""
    names = (name.split('.') for name in imports_of(path))
    return {name[depth] for name in names if name[0] == 'timm_lt' and len(name) > depth}


def test_every_room_has_its_arrows():
    rooms = {path.parent.name for path in PACKAGE.glob('*/__init__.py')} | {path.stem for path in PACKAGE.glob('*.py')}
    assert rooms - BOTTOM == set(ARROWS)
    assert {path.parent.name for path in PACKAGE.glob('evaluate/*/__init__.py')} == set(ARROWS_OF_EVALUATE)


@pytest.mark.parametrize('room', sorted(ARROWS))
def test_imports_go_one_way_inside_functions_too(room):
    for path in [*PACKAGE.glob(f'{room}.py'), *(PACKAGE / room).rglob('*.py')]:
        above = rooms_imported(path, 1) - ARROWS[room] - BOTTOM - {room}
        assert not above, f'{path.relative_to(PACKAGE)} imports {above}'
        accelerate = {'accelerate'} & {name.split('.')[0] for name in imports_of(path)}
        assert room == 'training' or not accelerate, f'{path.relative_to(PACKAGE)}: accelerate'


@pytest.mark.parametrize('part', sorted(ARROWS_OF_EVALUATE))
def test_imports_of_evaluate_go_one_way(part):
    for path in (PACKAGE / 'evaluate' / part).rglob('*.py'):
        names = [name.split('.') for name in imports_of(path) if name.startswith('timm_lt.evaluate.')]
        above = {name[2] for name in names} - ARROWS_OF_EVALUATE[part] - {part}
        assert not above, f'{path.relative_to(PACKAGE)} imports {above}'


def test_the_bottom_imports_no_room():
    found = {(path.stem, name) for path in PACKAGE.glob('*.py') if path.stem in BOTTOM - {'__init__', '__main__'}
             for name in rooms_imported(path, 1) & set(ARROWS)}
    assert not found


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


@pytest.mark.parametrize('path', FILES, ids=lambda p: str(p.relative_to(PACKAGE)))
def test_sentences_of_docstrings_are_short(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)):
            long = [s for s in sentences(ast.get_docstring(node) or '') if number_of_words(s) > 25]
            where = getattr(node, 'name', path.stem)
            assert not long, f'{where}: write at most 20 words a sentence, here over 25: {long}'


def test_sentences_are_found_in_every_part_of_a_docstring():
    found = list(sentences("""Head, e.g. ``a b c``. Second one.

    Paper: A. Author et al., "Title", VENUE.
    Implements: Eq. (1). Then
    more.

    - an item.

    Args:
        name: First line
            goes on. Next.
        *more, other: Last.

    Examples:
        >>> code. Here.
    """))
    assert found == [
        'Head, e.g literal.', 'Second one.', 'Eq (1).', 'Then more.', 'an item.', 'First line goes on.', 'Next.',
        'Last.']
    assert number_of_words(found[0]) == 3


def test_the_package_lists_its_public_names_and_nothing_private():
    names = dir(timm_lt)
    assert {'data', 'hub', 'evaluate', 'training', 'two_stage', 'gkp', 'posthoc', 'long_tailed_subset'} <= set(names)
    assert not [name for name in names if name.startswith('_') and name != '__version__']
    assert all(hasattr(timm_lt, name) for name in names)


def names_for_type_checkers(path):
    """Names that an ``__init__`` imports for type checkers alone."""
    blocks = [node for node in ast.parse(path.read_text()).body if isinstance(node, ast.If)]
    return {alias.asname for block in blocks if ast.unparse(block.test) == 'TYPE_CHECKING'
            for node in block.body for alias in node.names}


def test_names_for_type_checkers_exist():
    # a name may be missing there, because a new method stays one file
    for path in PACKAGE.rglob('__init__.py'):
        if names := names_for_type_checkers(path):
            package = importlib.import_module('.'.join(path.parent.relative_to(ROOT).parts))
            assert names <= set(package.__all__), path.relative_to(ROOT)
    assert 'SAM' in names_for_type_checkers(PACKAGE / 'optim' / '__init__.py')


@pytest.mark.parametrize(
    'registry', [LOSSES, SAMPLERS, MIXINGS, OPTIMIZERS, SECOND_STAGES, POSTHOC, FINETUNING], ids=lambda r: r.kind)
def test_every_method_names_its_paper(registry):
    assert all(info.description and info.paper for info in registry.infos())

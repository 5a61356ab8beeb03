"""The command ``timm-lt``: its table, help, lists and completion."""

import sys

import pytest
from paths import ROOT

import timm_lt
from timm_lt import cli
from timm_lt.cli import COMMANDS, completion, listing, train
from timm_lt.training.options import OPTIONS, Options, list_recipes, parse_options, recipe_folder
from timm_lt.training.options import _recipes as recipes


def status_of(argv):
    try:
        return cli.main(argv)
    except SystemExit as e:  # argparse
        return e.code


def test_without_a_command_the_table_is_shown(capsys):
    assert status_of([]) == 0
    text = capsys.readouterr().out
    assert all(f'  {command.name} ' in text and command.help in text for command in COMMANDS)


def test_the_version_is_that_of_the_package(capsys):
    assert status_of(['--version']) == 0
    assert capsys.readouterr().out == f'timm-lt {timm_lt.__version__}\n'


def test_an_unknown_command_is_one_sentence_with_the_nearest(capsys):
    assert status_of(['trian']) == 2
    assert capsys.readouterr().err == "timm-lt: error: unknown command 'trian'. Did you mean 'train'?\n"


@pytest.mark.parametrize('command', COMMANDS, ids=lambda c: c.name)
def test_the_help_of_a_command_fits_two_screens(command, capsys, monkeypatch):
    monkeypatch.setenv('COLUMNS', '100')
    assert status_of([command.name, '--help']) == 0
    text = capsys.readouterr().out
    assert text.startswith(f'usage: timm-lt {command.name}')
    assert len(text.splitlines()) <= 100


def test_every_option_is_in_the_help_of_its_group_and_of_all(capsys):
    assert set(train.MOST_USED) <= set(OPTIONS)
    assert status_of(['train', '--help-all']) == 0
    everything = capsys.readouterr().out
    shown = ''
    for group in train.GROUP_NAMES:
        assert status_of(['train', '--help', group]) == 0
        shown += capsys.readouterr().out
    flags = [info.flag for info in OPTIONS.values() if not info.file_only]
    assert all(flag in shown and flag in everything for flag in flags)


def test_an_unknown_group_of_options_is_refused(capsys):
    assert status_of(['train', '--help', 'models']) == 2
    assert "'model'" in capsys.readouterr().err


@pytest.mark.parametrize('argv, start', [
    (['train', '--epoch', '3'], 'timm-lt train: error: unknown option'),
    (['evaluate', 'nowhere'], "timm-lt evaluate: error: checkpoint 'nowhere' cannot be read"),
    (['compare', 'nowhere'], 'timm-lt compare: error: '),
    (['hub', 'push', 'nowhere', 'a/b'], 'timm-lt hub: error: nowhere is no checkpoint'),
])
def test_errors_name_the_command(argv, start, capsys):
    assert status_of(argv) == 2
    text = capsys.readouterr().err
    assert text.startswith(start) and text.count('\n') == 1


@pytest.mark.parametrize('kind', listing.KINDS)
def test_lists_have_names_and_descriptions(kind, capsys):
    assert status_of(['list', kind]) == 0
    rows = [line.split(None, 1) for line in capsys.readouterr().out.splitlines()]
    assert rows and all(len(row) == 2 for row in rows)
    assert status_of(['list', kind, rows[0][0], '--quiet']) == 0
    assert capsys.readouterr().out == f'{rows[0][0]}\n'


@pytest.mark.parametrize('shell', completion.SHELLS)
def test_completion_scripts_hold_commands_and_options(shell, capsys):
    pytest.importorskip('shtab')
    assert status_of(['completion', shell]) == 0
    text = capsys.readouterr().out
    assert all(command.name in text for command in COMMANDS) and 'imbalance-ratio' in text


def test_completion_without_shtab_says_what_to_install(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, 'shtab', None)
    assert status_of(['completion', 'bash']) == 2
    assert 'timm-lt[completion]' in capsys.readouterr().err


def test_an_interrupted_command_leaves_no_traceback(monkeypatch, capsys):
    def interrupted(argv):
        raise KeyboardInterrupt

    monkeypatch.setattr(listing, 'main', interrupted)
    assert status_of(['list', 'losses']) == 130
    assert capsys.readouterr().err == 'timm-lt list: interrupted\n'


def test_recipes_go_by_name_from_any_folder(tmp_path, monkeypatch):
    expected = parse_options(['--config', str(ROOT / 'hub_configs' / 'cifar10_lt-gala.yaml')])
    monkeypatch.chdir(tmp_path)
    assert parse_options(['--config', 'cifar10_lt-gala']) == expected
    assert expected != Options() and list_recipes('*cifar10_lt-ga?a') == ['cifar10_lt-gala']


def test_a_file_goes_before_the_recipe_of_its_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / 'cifar10_lt-gala').write_text('epochs: 7\n')
    assert parse_options(['--config', 'cifar10_lt-gala']).schedule.epochs == 7


@pytest.mark.parametrize('config, message', [
    ('cifar10_lt-gaal', "no recipe has that name. Did you mean 'cifar10_lt-gala'"),
    ('hub_configs/cifar10_lt-gala.yaml', 'The package has it by name: --config cifar10_lt-gala'),
    ('mine/own.yaml', 'config file mine/own.yaml does not exist\n'),
])
def test_a_missing_config_names_the_recipe(config, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert status_of(['train', '--config', config]) == 2
    assert message in capsys.readouterr().err


def test_the_wheel_holds_the_recipes_where_the_package_looks(tmp_path, monkeypatch):
    assert f'\n"{recipes.FOLDER}" = "timm_lt/{recipes.FOLDER}"' in (ROOT / 'pyproject.toml').read_text()
    installed = tmp_path / 'timm_lt'
    (installed / recipes.FOLDER).mkdir(parents=True)
    monkeypatch.setattr(recipes, 'PACKAGE', installed)
    assert recipe_folder() == installed / recipes.FOLDER

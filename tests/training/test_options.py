"""Options: every declaration holds for parser, files, checks and table; no option that users have is lost."""

import ast
import dataclasses
import inspect
import json

import pytest
import yaml
from paths import ROOT

from timm_lt._private_options import PRIVATE_OPTIONS
from timm_lt.training.config import ConfigError
from timm_lt.training.options import (
    GROUPS,
    NOT_OFFERED,
    OPTIONS,
    RULES,
    Options,
    build_parser,
    configuration,
    differing_keys,
    load_config,
    options_table,
    parse_options,
    to_yaml,
)
from timm_lt.training.options._option import Interval, declared_options, option
from timm_lt.training.options._timm_names import refusal

NEW_DEFAULTS = {'channels_last', 'model'}  # changed on purpose


def flags():
    return {string: a for a in build_parser()._actions for string in a.option_strings}


def test_no_option_that_users_have_is_lost_or_has_another_default():
    actions = {a.dest: a for a in build_parser()._actions}
    for name, before in json.loads((ROOT / 'tests/training/options_of_users.json').read_text()).items():
        action = actions[name]
        assert set(before['strings']) <= set(action.option_strings), name
        assert (action.nargs, action.const) == (before.get('nargs'), before.get('const')), name
        assert name in NEW_DEFAULTS or action.default == before['default'], name


def test_args_of_a_run_older_than_some_options_load_and_compare(tmp_path):
    names = [n for n in json.loads((ROOT / 'tests/training/options_of_users.json').read_text()) if n != 'config']
    now = parse_options(['--epochs', '3', '--opt', 'sam', '--opt-kwargs', 'rho=0.1'])
    old = {k: v for k, v in yaml.safe_load(to_yaml(now)).items() if k in names}
    assert len(old) < len(OPTIONS)
    (tmp_path / 'args.yaml').write_text(yaml.safe_dump(old))
    assert differing_keys(old, now) == []
    assert parse_options(['--config', str(tmp_path / 'args.yaml')]) == now
    assert differing_keys(old | {'lr': 7.0, 'workers': 9}, now) == ['lr']
    assert differing_keys(old | {'left': 1}, now) == ['left']


def test_every_option_of_timm_is_offered_or_refused_by_name():
    lines = (ROOT / 'tests/training/timm_options.txt').read_text().splitlines()
    known = [name for line in lines if not line.startswith('#') for name in line.split()]
    neither = {name for name in known if name not in flags() and not refusal(name)}
    assert not neither
    assert not [name for name in NOT_OFFERED if name in flags()], 'offered and refused'


def test_every_option_that_the_installed_timm_reads_is_offered_or_refused():
    from timm.optim import optimizer_kwargs
    from timm.scheduler import scheduler_kwargs
    for function in (scheduler_kwargs, optimizer_kwargs):
        for node in ast.walk(ast.parse(inspect.getsource(function))):
            name = None
            if isinstance(node, ast.Attribute) and getattr(node.value, 'id', '') == 'cfg':
                name = node.attr
            elif isinstance(node, ast.Call) and getattr(node.func, 'id', '') == 'getattr':
                name = node.args[1].value
            flag = '--' + str(name).replace('_', '-')
            assert name is None or flag in flags() or refusal(flag), flag


@pytest.mark.parametrize('argv, words', [
    (['--fuser', 'te'], "timm's --fuser is not offered; instead: --torchcompile"),
    (['--naflex-loader'], '--img-size'),
    (['--kd-model-name', 'resnet50'], 'distillation is not offered'),
    (['--bce-loss'], '--loss bce'),
])
def test_an_option_of_timm_without_a_meaning_says_what_to_use(argv, words, tmp_path):
    with pytest.raises(ConfigError) as error:
        parse_options(argv)
    assert words in str(error.value)
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump({argv[0][2:].replace('-', '_'): 1}))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / 'c.yaml')
    assert words in str(error.value)


@pytest.mark.parametrize('argv, words', [
    (['--mixup', '-1'], '--mixup must be >= 0, got -1'),
    (['--scale', '2', '3'], '--scale is the share of the image'),
    (['--scale', '0.9', '0.2'], 'the smaller value first'),
    (['--clip-grad', '-1'], '--clip-grad must be > 0'),
    (['--weight-decay', '-1'], '--weight-decay must be >= 0'),
    (['--weight-decay', 'nan'], '--weight-decay must be >= 0, got nan'),
    (['--lr', 'inf'], '--lr must be >= 0, got inf'),
    (['--momentum', '2'], '--momentum must be in [0, 1)'),
    (['--model-ema-decay', '2'], '--model-ema-decay must be in [0, 1)'),
    (['--crop-pct', '0'], '--crop-pct must be in (0, 1]'),
    (['--seed', '4294967296'], '--seed must be in [0, 2**32 - 1]'),
    (['--imbalance-ratio', '0.01'], 'some repositories write its inverse'),
    (['--opt-betas', '0.9', '0.99'], '--opt sgd has no betas'),
    (['--opt', 'sam', '--opt-betas', '0.9', '0.99'], '--opt sam has no betas'),
    (['--opt', 'adamw', '--opt-betas', '0.9'], 'another number of betas'),
    (['--opt', 'lion', '--opt-eps', '1e-8'], 'no epsilon'),
    (['--experiment', '../evil'], '--experiment names a folder inside --output'),
    (['--experiment', '/evil'], '--experiment names a folder inside --output'),
    (['--interpolation', 'foo'], "--interpolation: invalid choice: 'foo'"),
    (['--sampler-kwargs', 'foo'], "--sampler-kwargs takes key=value pairs, got 'foo'"),
    (['--sampler-kwargs', '=foo'], '--sampler-kwargs takes key=value pairs'),
    (['--epochs', 'many'], 'invalid int value'),
    (['--color-jitter-prob', '0.5'], '--color-jitter-prob is of --color-jitter'),
    (['--decay-milestones', '5', '3'], '--decay-milestones must increase'),
    (['--lr-noise', '0.1', '0.2', '0.3'], '--lr-noise takes one or two values'),
    (['--input-size', '0', '8', '8'], 'each value of --input-size must be >= 1'),
    (['--in-chans', '1', '--input-size', '3', '8', '8'], 'different channels'),
    (['--gkp'], '--gkp needs --opt gsa'),
    (['--stage2-lr', '0.1'], '--stage2-lr is of the second stage'),
    (['--images-per-class', '5', '--dataset', 'torch/cifar10'], 'give --imbalance-ratio too'),
    (['--private'], '--push-to-hub USER/NAME'),
    (['a', '--data-dir', 'b'], 'two data folders'),
])
def test_options_that_cannot_be_meant_are_refused(argv, words):
    with pytest.raises(ConfigError) as error:
        parse_options(argv)
    assert words in str(error.value)


@pytest.mark.parametrize('argv', [
    ['--scale', '0.9', '1.5', '--train-crop-mode', 'rkrr'], ['--opt', 'sam', '--opt-kwargs', 'base=adamw',
     '--opt-betas', '0.9', '0.99'], ['--experiment', 'a/b'], ['--opt', 'nobody', '--opt-betas', '0.9'],
    ['--head-init-bias', '-3'], ['--lr', '0'], ['--epochs', '0', '--stage2', 'crt'], ['--sampler-kwargs', 'q=0.5']])
def test_options_with_a_meaning_pass(argv):
    parse_options(argv)


def test_every_default_lies_in_its_range_and_among_its_choices():
    for info in OPTIONS.values():
        info.check_range(info.default)
        assert info.choices is None or info.default in (None, *info.choices), info.name


def test_a_rule_names_options_that_exist():
    values = Options().flat()
    for rule in RULES:
        rule.message.format_map(values)
        for word in rule.message.replace(',', ' ').replace(';', ' ').replace(':', ' ').replace(')', ' ').split():
            assert not word.startswith('--') or word in flags(), word


def test_every_private_option_exists():
    assert PRIVATE_OPTIONS - {'config'} <= OPTIONS.keys()


def test_flat_values_and_groups_are_the_same_options():
    options = Options.from_flat({'batch_size': 8, 'stage2': 'crt'})
    assert (options.data.batch_size, options.second_stage.stage2) == (8, 'crt')
    assert Options.from_flat(options.flat()) == options
    assert options.replace(batch_size=9).flat()['batch_size'] == 9 and options.data.batch_size == 8
    with pytest.raises(ConfigError, match="unknown option 'batchsize'"):
        options.replace(batchsize=1)
    with pytest.raises(dataclasses.FrozenInstanceError):
        options.data.batch_size = 3


def test_defaults_are_not_shared():
    Options().data.sampler_kwargs['q'] = 1
    Options().schedule.decay_milestones.append(5)
    assert Options().data.sampler_kwargs == {} and Options().schedule.decay_milestones == [160, 180]


def test_options_that_say_where_and_how_define_no_run():
    now = Options()
    assert differing_keys(now, now.replace(workers=7, output='x', resume='auto', data_dir='d')) == []
    assert 'hub' not in configuration(now) and 'workers' not in configuration(now)


@pytest.mark.parametrize('value, words', [
    ({'epochs': 3.5}, 'epochs must be int'), ({'epochs': True}, 'epochs must be int'),
    ({'lr': [1]}, 'lr must be float'),
    ({'scale': 0.5}, 'scale must be a list'), ({'model': ['a']}, 'model must be str'),
    ({'interpolation': 'foo'}, 'interpolation must be one of'), ({'mean': ['a']}, 'mean must be float'),
])
def test_values_of_files_are_checked_by_kind(tmp_path, value, words):
    (tmp_path / 'c.yaml').write_text(yaml.safe_dump(value))
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / 'c.yaml')
    assert words in str(error.value)


def test_a_file_that_is_its_own_base_is_refused(tmp_path):
    (tmp_path / 'a.yaml').write_text('base: b.yaml')
    (tmp_path / 'b.yaml').write_text('base: a.yaml')
    with pytest.raises(ConfigError, match='its own base'):
        load_config(tmp_path / 'a.yaml')


def test_the_table_has_a_row_for_every_option_and_a_section_for_every_group():
    table = options_table()
    rows = [line for line in table.splitlines() if line.startswith(('| `--', '| `published', '| `hub'))]
    assert len(rows) == len(OPTIONS)
    for info in OPTIONS.values():
        assert any(f'`{info.flag}`' in row or f'`{info.name}:`' in row for row in rows), info.name
    assert all(row.replace('\\|', '').count('|') == 5 for row in rows)
    assert [line[3:].lower() for line in table.splitlines() if line.startswith('## ')] == [
        g.title.lower() for g in GROUPS]
    assert '| `--val-fraction` | `0.0` | number in [0, 1) | ' in table
    assert '| `--decay-rate`, `--dr` | `0.1` | number >= 0 | ' in table


def test_a_new_option_is_one_line():
    """A group with one more field parses, loads from files and is checked."""
    @dataclasses.dataclass(frozen=True)
    class More:
        """More."""
        title = 'more'
        warmth: list[float] | None = option(None, 'how warm', '-w', within='(0, 1]', nargs='+')

    info, = declared_options(More)
    assert (info.flag, info.type, info.many, info.flags, info.group) == ('--warmth', float, True, ('-w',), 'more')
    assert info.from_yaml(['0.5', 1], 'file') == [0.5, 1.0]
    info.check_range([0.5])
    with pytest.raises(ConfigError, match=r'each value of --warmth must be in \(0, 1\], got 0.0'):
        info.check_range([0.5, 0.0])


def test_ends_of_an_interval_belong_to_it_where_they_say_so():
    assert 0 in Interval.parse('[0, 1)') and 1 not in Interval.parse('[0, 1)')
    assert 0 not in Interval.parse('(0, 1]') and 1 in Interval.parse('(0, 1]')
    assert -3.5 in Interval.parse('(-inf, inf)') and float('nan') not in Interval.parse('(-inf, inf)')

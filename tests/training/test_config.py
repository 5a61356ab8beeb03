"""Options: defaults, files, command line, and messages for what cannot be meant."""

import argparse

import pytest
import yaml

from timm_lt.training.config import ConfigError, build_parser, differing_keys, load_config, parse_args, to_yaml


def write(path, **options):
    path.write_text(yaml.safe_dump(options))
    return str(path)


def test_no_option_at_all_means_the_embedded_digits():
    args = parse_args([])
    assert args.data.dataset == 'timm_lt/digits' and args.data.imbalance_ratio == 50


def test_an_explicit_option_wins_over_the_digits_defaults_even_at_its_general_default():
    assert parse_args(['--epochs', '100']).schedule.epochs == 100


def test_the_command_line_wins_over_the_file_and_the_file_over_defaults(tmp_path):
    config = write(tmp_path / 'c.yaml', epochs=7, lr=0.5, model='resnet32_cifar')
    args = parse_args(['--config', config, '--epochs', '9'])
    assert (args.schedule.epochs, args.schedule.lr, args.model.model) == (9, 0.5, 'resnet32_cifar')


def test_a_base_file_comes_first(tmp_path):
    write(tmp_path / 'base.yaml', epochs=7, lr=0.5)
    config = write(tmp_path / 'c.yaml', base='base.yaml', epochs=8)
    assert load_config(config) == {'epochs': 8, 'lr': 0.5}


def test_yaml_numbers_in_e_notation_are_numbers(tmp_path):
    (tmp_path / 'c.yaml').write_text('weight_decay: 5e-4\n')
    assert load_config(tmp_path / 'c.yaml') == {'weight_decay': 5e-4}


@pytest.mark.parametrize('options, words', [
    ({'epoch': 3}, "unknown key 'epoch'. Did you mean 'epochs'"),
    ({'epochs': 'many'}, 'epochs must be int'),
    ({'model_ema': 'yes please'}, 'model_ema must be true or false'),
    ({'opt_kwargs': 'rho=0.1'}, 'opt_kwargs must hold `key: value` pairs'),
    ({'imbalance_profile': 'linear'}, "imbalance_profile must be one of ['exp', 'step']"),
    ({'input_size': [3, 32]}, 'input_size needs 3 values'),
])
def test_a_file_with_a_wrong_key_or_value_is_refused(tmp_path, options, words):
    with pytest.raises(ConfigError) as error:
        load_config(write(tmp_path / 'c.yaml', **options))
    assert words in str(error.value)


def test_a_file_that_is_missing_or_no_yaml_is_refused(tmp_path):
    with pytest.raises(ConfigError, match='does not exist'):
        load_config(tmp_path / 'none.yaml')
    with pytest.raises(ConfigError, match='cannot be read'):
        load_config(tmp_path)
    (tmp_path / 'binary.yaml').write_bytes(b'\xff\xfe\x00')
    with pytest.raises(ConfigError, match='cannot be read'):
        load_config(tmp_path / 'binary.yaml')
    (tmp_path / 'bad.yaml').write_text('a: [1')
    with pytest.raises(ConfigError, match='is not YAML'):
        load_config(tmp_path / 'bad.yaml')


@pytest.mark.parametrize('argv, words', [
    (['--imbalance-ratio', '0.01'], '--imbalance-ratio'),
    (['--epochs', '0'], '--epochs must be >= 1'),
    (['--val-fraction', '1.5'], '--val-fraction must be in'),
    (['--mixup', '0.2', '--batch-size', '7'], '--batch-size must be even'),
    (['--los', 'ce'], "unknown option '--los'. Did you mean '--loss'"),
    (['--seed', '-1'], '--seed must be in'),
    (['-vb', '-5'], '--validation-batch-size must be >= 1'),
    (['--drop', '2'], '--drop must be in [0, 1)'),
    (['--split-rule', 'bogus'], '--split-rule'),
    (['--sched', 'plateau'], '--sched plateau follows the validation part'),
])
def test_options_that_no_run_can_use_are_refused(argv, words):
    with pytest.raises(ConfigError) as error:
        parse_args(argv)
    assert words in str(error.value)


def test_the_written_options_read_back_as_the_same_configuration(tmp_path):
    args = parse_args(['--opt', 'sam', '--opt-kwargs', 'rho=0.1', '--decay-milestones', '3', '4'])
    (tmp_path / 'args.yaml').write_text(to_yaml(args))
    again = parse_args(['--config', str(tmp_path / 'args.yaml')])
    assert differing_keys(args, again) == []
    assert differing_keys(args, again.replace(lr=3.0, workers=9)) == ['lr']


def test_every_option_has_one_default_and_a_yaml_name():
    actions = [a for a in build_parser()._actions if a.dest != 'help']
    assert len({a.dest for a in actions}) == len(actions)
    assert all(not isinstance(a, argparse._StoreTrueAction) for a in actions)

"""A run goes on with the data and processes that it began with, or says what differs."""

import copy
from types import SimpleNamespace

import pytest
import torch

from timm_lt import ClassDistribution, training
from timm_lt.training import fingerprint as module
from timm_lt.training.config import ConfigError
from timm_lt.training.fingerprint import check_fingerprint, differences, fingerprint


class Part:
    def __init__(self, targets):
        self.targets = torch.tensor(targets)

    def __len__(self):
        return len(self.targets)


def parts(train=(0, 0, 0, 1, 1, 2), validation=(0, 1), test=(0, 1, 2), names=('ant', 'bee', 'cat')):
    return SimpleNamespace(
        train=Part(train), validation=None if validation is None else Part(validation), test=Part(test),
        distribution=ClassDistribution.from_targets(list(train), len(names), names))


ONE = SimpleNamespace(num_processes=1, process_index=0, is_main_process=True)


@pytest.mark.parametrize('changed, processes, words', [
    (parts(names=('ant', 'cat', 'bee')), 1, "class names: class 1 has 'bee' there, 'cat' here"),
    (parts(names=('ant', 'bee', 'cat', 'dog')), 1, 'class names: 3 classes there, 4 here'),
    (parts(train=(0, 0, 0, 0, 1, 2)), 1, "training images per class: class 'ant' has 3 there, 4 here"),
    (parts(train=(1, 0, 0, 0, 1, 2)), 1, 'train images: other labels, or the same in another order'),
    (parts(validation=None), 1, 'validation images: 2 there, 0 here'),
    (parts(test=(0, 1, 2, 2)), 1, 'test images: 3 there, 4 here'),
    (parts(), 2, 'processes: 1 there, 2 here'),
])
def test_a_run_on_other_data_is_refused_with_what_differs(tmp_path, changed, processes, words):
    check_fingerprint(fingerprint(parts(), 1), tmp_path, ONE, resumed=False)
    check_fingerprint(fingerprint(parts(), 1), tmp_path, ONE, resumed=True)
    stored = (tmp_path / module.FILE).read_text()
    with pytest.raises(ConfigError, match='cannot resume .*') as error:
        check_fingerprint(fingerprint(changed, processes), tmp_path, ONE, resumed=True)
    assert words in str(error.value)
    assert (tmp_path / module.FILE).read_text() == stored


def test_equal_data_do_not_differ():
    assert differences(fingerprint(parts(), 1), fingerprint(parts(), 1)) == []


def test_an_older_run_without_a_fingerprint_goes_on(tmp_path):
    check_fingerprint(fingerprint(parts(), 1), tmp_path, ONE, resumed=True)
    assert (tmp_path / module.FILE).is_file()


@pytest.mark.parametrize('rank', [0, 1])
def test_processes_that_see_other_data_are_refused_on_all(tmp_path, monkeypatch, rank):
    mine = fingerprint(parts(), 2)
    other = fingerprint(parts(names=('ant', 'cat', 'bee')), 2)
    accelerator = SimpleNamespace(num_processes=2, process_index=rank, is_main_process=rank == 0)

    def gather(objects):
        if objects == [mine]:
            return [mine, other] if rank == 0 else [other, mine]
        return [*objects, 'the other process says so too']

    monkeypatch.setattr(module, 'gather_object', gather)
    with pytest.raises(ConfigError, match=f'process {1 - rank} .* see different data .class names: class 1'):
        check_fingerprint(copy.deepcopy(mine), tmp_path, accelerator, resumed=False)
    assert not (tmp_path / module.FILE).exists()


def test_the_script_stores_and_compares(tmp_path, monkeypatch, capsys):
    options = ['--images-per-class', '12', '--imbalance-ratio', '4', '-b', '16', '--epochs', '1', '--quiet',
               '--output', str(tmp_path), '--experiment', 'run']
    run = training.run if hasattr(training.run, 'build_data') else __import__('sys').modules['timm_lt.training.run']
    for name in ('write_report', 'write_hub', 'write_card'):
        monkeypatch.setattr(run.RunFolder, name, lambda self, *args: None, raising=False)
    assert training.main(options) == 0
    assert (tmp_path / 'run' / module.FILE).is_file()
    build = run.build_data

    def renamed(args):
        data = build(args)
        data.distribution.class_names[:2] = reversed(data.distribution.class_names[:2])
        return data

    monkeypatch.setattr(run, 'build_data', renamed)
    assert training.main([*options, '--resume', 'auto']) == 2
    assert 'class names: class 0' in capsys.readouterr().err

"""Checkpoints: whole or absent, read back or refused, found by the configuration of their run."""

import json
import shutil

import pytest
import torch
from accelerate import Accelerator
from safetensors import SafetensorError
from timm.scheduler import create_scheduler_v2

from timm_lt.training.checkpoint import CheckpointError, load_checkpoint, replace_folder, save_checkpoint
from timm_lt.training.config import ConfigError, parse_args, to_yaml
from timm_lt.training.learner import Learner
from timm_lt.training.options import RunOptions
from timm_lt.training.outputs import RunFolder
from timm_lt.training.resume import check_same_configuration, choose_folder
from timm_lt.training.trainer import Trainer
from timm_lt.training.windows import Windows


@pytest.fixture
def accelerator():
    from accelerate.state import AcceleratorState
    accelerator = Accelerator(cpu=True)
    accelerator.prepare(torch.nn.Linear(2, 2))
    yield accelerator
    AcceleratorState._reset_state(reset_partial_state=True)


@pytest.mark.parametrize('error', [
    OSError(28, 'No space left on device'), SafetensorError('I/O error: No space left on device'),
    RuntimeError('[enforce fail at inline_container.cc:671] . unexpected pos 64 vs 0'),
])
def test_a_failed_save_keeps_the_older_checkpoint_and_leaves_no_part(tmp_path, accelerator, monkeypatch, error):
    save_checkpoint(accelerator, tmp_path / 'last', {'epoch': 1})
    whole = (tmp_path / 'last/model.safetensors').read_bytes()

    def fail(folder):
        (tmp_path / 'last.new').mkdir()
        raise error

    monkeypatch.setattr(accelerator, 'save_state', fail)
    with pytest.raises(CheckpointError, match='is kept.*--resume auto'):
        save_checkpoint(accelerator, tmp_path / 'last', {'epoch': 2})
    assert [p.name for p in tmp_path.iterdir()] == ['last']
    assert (tmp_path / 'last/model.safetensors').read_bytes() == whole


def test_a_folder_left_by_a_kill_stays_until_the_next_is_in_place(tmp_path, monkeypatch):
    for name in ('last.old', 'last.new'):
        (tmp_path / name).mkdir()
    monkeypatch.setattr('timm_lt._files.os.replace', lambda *names: 1 / 0)  # killed again
    with pytest.raises(ZeroDivisionError):
        replace_folder(tmp_path / 'last.new', tmp_path / 'last')
    assert (tmp_path / 'last.old').is_dir()
    monkeypatch.undo()
    replace_folder(tmp_path / 'last.new', tmp_path / 'last')
    assert [p.name for p in tmp_path.iterdir()] == ['last']


@pytest.mark.parametrize('file', ['model.safetensors', 'complete.json'])
def test_a_damaged_checkpoint_is_named(tmp_path, accelerator, file):
    save_checkpoint(accelerator, tmp_path / 'last')
    (tmp_path / 'last' / file).write_bytes(b'\x80damaged')
    with pytest.raises(CheckpointError, match='cannot read the checkpoint .*last'):
        load_checkpoint(accelerator, tmp_path / 'last')


def test_a_checkpoint_inside_an_epoch_belongs_to_its_number_of_processes(tmp_path, accelerator):
    for step in (0, 3):
        save_checkpoint(accelerator, tmp_path / 'last', {'epoch': 1, 'step': step})
        note = json.loads((tmp_path / 'last/complete.json').read_text())
        assert note == {'processes': 1, 'epoch': 1, 'step': step}
        load_checkpoint(accelerator, tmp_path / 'last')
        (tmp_path / 'last/complete.json').write_text(json.dumps(note | {'processes': 2}))
        if step == 0:
            load_checkpoint(accelerator, tmp_path / 'last')
        else:
            with pytest.raises(CheckpointError, match=r'written inside an epoch by 2 processes; with 1'):
                load_checkpoint(accelerator, tmp_path / 'last')


def options(output, *more):
    return parse_args(['--output', str(output), '--experiment', 'run', '--resume', 'auto', *more])


def make_run(folder, args, checkpoint=True):
    (folder / 'last').mkdir(parents=True)
    (folder / 'args.yaml').write_text(to_yaml(args))
    if checkpoint:
        (folder / 'last/complete.json').write_text('{}')


def test_resume_auto_finds_the_run_of_the_same_configuration(tmp_path):
    first, second = options(tmp_path), options(tmp_path, '--lr', '0.3')
    make_run(tmp_path / 'run', first)
    make_run(tmp_path / 'run-2', second)
    assert choose_folder(first) == (tmp_path / 'run', tmp_path / 'run/last')
    assert choose_folder(second) == (tmp_path / 'run-2', tmp_path / 'run-2/last')
    make_run(tmp_path / 'run-3', first, checkpoint=False)
    assert choose_folder(first) == (tmp_path / 'run-3', None)
    third = options(tmp_path, '--lr', '0.5')
    folder, _ = choose_folder(third)
    with pytest.raises(ConfigError, match=r'another configuration \(lr: '):
        check_same_configuration(third, folder)
    shutil.rmtree(tmp_path)
    assert choose_folder(first) == (tmp_path / 'run', None)


def test_a_run_without_a_checkpoint_is_not_taken_over_by_other_options(tmp_path, capsys):
    from timm_lt.training import main
    make_run(tmp_path / 'run', options(tmp_path), checkpoint=False)
    before = (tmp_path / 'run/args.yaml').read_text()
    assert main(['--output', str(tmp_path), '--experiment', 'run', '--resume', 'auto', '--lr', '0.5', '--quiet']) == 2
    assert 'another configuration (lr: ' in capsys.readouterr().err
    assert (tmp_path / 'run/args.yaml').read_text() == before


def test_options_of_a_run_that_cannot_be_read_are_named(tmp_path):
    for content in (b'\xff\xfe\x00', b'a: [1', b'7'):
        (tmp_path / 'args.yaml').write_bytes(content)
        with pytest.raises(ConfigError, match='args.yaml'):
            check_same_configuration(options(tmp_path), tmp_path)


@pytest.mark.filterwarnings('ignore:PlateauLRScheduler:FutureWarning')
def test_plateau_resumes_with_what_it_has_counted(tmp_path, accelerator):
    def trainer():
        accelerator.free_memory()
        accelerator._custom_objects.clear()
        model, optimizer = torch.nn.Linear(1, 1), None
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        model, optimizer = accelerator.prepare(model, optimizer)
        scheduler, _ = create_scheduler_v2(
            optimizer, sched='plateau', num_epochs=40, warmup_epochs=0, patience_epochs=3, plateau_mode='max')
        learner = Learner(accelerator, model, torch.nn.CrossEntropyLoss(), optimizer, scheduler)
        return Trainer(learner, Windows([]), 40, {'many': torch.ones(2) > 0}, RunFolder(tmp_path), RunOptions())

    def rates(trainer, epochs):
        rates = []
        for epoch in epochs:
            trainer.learner.scheduler.step(epoch + 1, 50.0 - epoch)
            rates.append(trainer.optimizer.param_groups[0]['lr'])
        return rates

    straight = trainer()
    rates(straight, range(3))
    straight.save()
    expected = rates(straight, range(3, 12))
    resumed = trainer()
    load_checkpoint(accelerator, tmp_path / 'last')
    assert rates(resumed, range(3, 12)) == expected and len(set(expected)) > 2

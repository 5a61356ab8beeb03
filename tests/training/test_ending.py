"""The end of a run: what was trained is kept whatever fails after it, and the failure is said once."""

import json

import numpy as np
import pytest
import timm
from accelerate.state import AcceleratorState

from timm_lt.evaluate.cli import main as evaluate_main
from timm_lt.training import ending, main
from timm_lt.training.errors import ConfigError

TINY = ['--dataset', 'timm_lt/digits', '--epochs', '1', '-b', '32', '--images-per-class', '8', '--imbalance-ratio',
        '2', '--workers', '0', '--quiet', '--experiment', 'run', '--model', 'test_resnet', '--img-size', '32']


@pytest.fixture(autouse=True)
def fresh_accelerate_state():
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_launcher_gets_the_message_on_every_process_and_one_process_says_it(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'error.json'))
    for rank, lines in (('1', 0), ('0', 1)):
        monkeypatch.setenv('RANK', rank)
        assert main(['--loss', 'foo']) == 2
        said = json.loads((tmp_path / 'error.json').read_text())
        (tmp_path / 'error.json').unlink()
        assert said['message'].startswith("error: unknown loss 'foo'") and said['timestamp'].isdigit()
        assert capsys.readouterr().err.count('\n') == lines
    monkeypatch.setenv('TORCHELASTIC_ERROR_FILE', str(tmp_path / 'no_folder' / 'error.json'))
    assert main(['--loss', 'foo']) == 2


def failing(*_, **__):
    raise RuntimeError('the font library\nstumbled')


@pytest.mark.parametrize('broken, missing, written', [
    ('timm_lt.evaluate.write_report', ['report.html', 'plots'], ['hub/README.md']),
    ('timm_lt.hub.folder.write_card', ['hub/README.md'], ['report.html', 'plots/per_class.png']),
], ids=['report', 'card'])
def test_a_broken_ornament_is_one_warning_and_can_be_made_later(
        tmp_path, capsys, monkeypatch, broken, missing, written):
    run = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr(broken, failing)
        assert main([*TINY, '--output', str(tmp_path)]) == 3
    out, err = capsys.readouterr()
    assert err.count('\n') == 1 and 'warning' in err and 'the font library stumbled' in err
    assert f'python -m timm_lt.evaluate report {run}' in err and str(run) in out
    assert not any((run / name).exists() for name in missing) and all((run / name).exists() for name in written)
    assert np.load(run / 'predictions.npz')['logits'].shape[1] == 10 and 'top1' in json.loads(
        (run / 'metrics.json').read_text())
    timm.create_model(f'local-dir:{run}/hub', pretrained=True)
    assert evaluate_main(['report', str(run)]) == 0
    assert all((run / name).exists() for name in (*missing, *written, 'hub/plots/per_class.png'))


def test_a_fault_after_training_keeps_the_weights_and_names_the_way_on(tmp_path, capsys, monkeypatch):
    run = tmp_path / 'run'
    with monkeypatch.context() as patch:
        patch.setattr('timm_lt.hub.folder.write_manifest', failing)
        assert main([*TINY, '--output', str(tmp_path)]) == 1
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and 'the font library stumbled' in err and f'--resume {run}' in err
    assert (run / 'last/model.safetensors').is_file() and (run / 'metrics.json').is_file()
    assert 'write_manifest' in (run / 'error.txt').read_text()
    assert main([*TINY, '--output', str(tmp_path), '--resume', str(run)]) == 0
    assert (run / 'hub/model.safetensors').is_file() and len((run / 'summary.csv').read_text().splitlines()) == 2


def test_an_interruption_is_one_line_with_the_command_that_goes_on(tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr('timm_lt.training.trainer.Trainer.fit', interrupted)
    arguments = [*TINY, '--output', str(tmp_path / 'two words')]
    assert main(arguments) == 130
    err = capsys.readouterr().err
    assert err.count('\n') == 1 and f"--output '{tmp_path}/two words' --resume auto" in err
    assert ending.command_to_go_on(['--resume', 'here']).endswith('--resume here')


def test_a_start_that_fails_before_anything_is_trained_leaves_its_name_free(tmp_path, capsys, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr('timm_lt.training.trainer.Trainer._step', failing)
        with pytest.raises(RuntimeError):
            main([*TINY, '--output', str(tmp_path)])
    assert list(tmp_path.iterdir()) == []
    AcceleratorState._reset_state(reset_partial_state=True)
    with monkeypatch.context() as patch:  # the first epoch is stored
        patch.setattr('timm_lt.training.trainer.Trainer._keep_checkpoints', failing)
        with pytest.raises(RuntimeError):
            main([*TINY, '--output', str(tmp_path)])
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*TINY, '--output', str(tmp_path), '--resume', 'auto']) == 0
    assert [p.name for p in tmp_path.iterdir()] == ['run']


def test_errors_are_said_once_over_all_processes(monkeypatch, capsys):
    monkeypatch.setenv('RANK', '1')
    assert main(['--epochs', '0']) == 2 and capsys.readouterr().err == ''
    assert not ending.speaks(ConfigError('all processes')) and ending.speaks(OSError('this one alone'))
    monkeypatch.setenv('RANK', '0')
    assert main(['--epochs', '0']) == 2 and capsys.readouterr().err.count('\n') == 1

"""``python -m timm_lt.evaluate --predictions FILE --class-stats FILE``."""

import json

import numpy as np
import pytest
import torch
from report_cases import coarse_pictures  # noqa: F401

from timm_lt import ClassDistribution
from timm_lt.evaluate import report
from timm_lt.evaluate.cli import main

COUNTS, NAMES = [200, 50, 5], ['猫', 'US$_$x', 'owl']


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Folder with the same predictions in every form; logits and targets."""
    monkeypatch.chdir(tmp_path)
    generator = torch.Generator().manual_seed(0)
    targets = torch.arange(60) % 3
    logits = torch.randn(60, 3, generator=generator)
    logits[torch.arange(60), targets] += 1
    ClassDistribution(COUNTS, NAMES).to_json('stats.json')
    np.savez('logits.npz', logits=logits.numpy(), targets=targets.numpy())
    np.savez('classes.npz', predictions=logits.argmax(1).numpy(), targets=targets.numpy())
    torch.save({'logits': logits, 'targets': targets}, 'logits.pt')
    for name, mark in (('logits.csv', ','), ('logits.tsv', '\t')):
        rows = [mark.join(map(repr, [*z, t])) for z, t in zip(logits.tolist(), targets.tolist())]
        (tmp_path / name).write_text('\n'.join([mark.join([*NAMES, 'target']), *rows]), encoding='utf-8')
    rows = [f'{t},{p}' for t, p in zip(targets.tolist(), logits.argmax(1).tolist())]
    (tmp_path / 'classes.csv').write_text('\n'.join(['label,prediction', *rows]))
    return tmp_path, logits, targets


def evaluate(name, *more):
    return main(['--predictions', name, '--class-stats', 'stats.json', '--bootstrap', '10', *more])


@pytest.mark.parametrize('name', ['logits.npz', 'logits.pt', 'logits.csv', 'logits.tsv'])
def test_logits_of_a_file_give_the_figures_of_report(name, files):
    folder, logits, targets = files
    assert evaluate(name, '--output', 'out') == 0
    found = json.loads((folder / 'out' / 'metrics.json').read_text())
    expected = report(logits, targets, COUNTS, class_names=NAMES, bootstrap=10)
    assert set(expected) <= set(found)
    for key in ('top1', 'top5', 'many', 'medium', 'few', 'macro_f1', 'ece', 'ece_few', 'per_class'):
        assert found[key] == pytest.approx(expected[key], abs=1e-5), key
    assert found['worst_class_name'] == expected['worst_class_name'] and found['confidence'] == expected['confidence']
    assert (folder / 'out' / 'report.html').is_file()


@pytest.mark.parametrize('name', ['classes.npz', 'classes.csv'])
def test_predicted_classes_leave_out_the_figures_that_need_scores(name, files, capsys):
    folder, logits, targets = files
    assert evaluate(name, '--output', 'out') == 0
    found = json.loads((folder / 'out' / 'metrics.json').read_text())
    expected = report(logits, targets, COUNTS, class_names=NAMES, bootstrap=10)
    assert found['top1'] == expected['top1'] and found['f1_per_class'] == pytest.approx(expected['f1_per_class'])
    assert found['top5'] is None and found['ece'] is None and found['confidence']['top5'] is None
    page = (folder / 'out' / 'report.html').read_text()
    assert 'Confusion of classes' in page and 'Calibration' not in page
    assert main(['compare', 'out', 'out', '--output', 'c.html', '--bootstrap', '10']) == 0
    assert 'McNemar' in (folder / 'c.html').read_text()


def test_evaluations_do_not_overwrite_one_another(files, capsys):
    folder, *_ = files
    assert evaluate('logits.npz') == 0 and evaluate('logits.npz', '--split-rule', 'thirds') == 0
    rules = [json.loads((folder / 'evaluation' / name / 'metrics.json').read_text())['split_rule']
             for name in ('logits', 'logits-2')]
    assert rules == ['gt100_lt20', 'thirds']
    assert 'evaluation/logits-2/report.html' in capsys.readouterr().out
    (folder / 'run').mkdir()
    (folder / 'run' / 'summary.csv').touch()
    assert evaluate('logits.npz', '--output', 'run') == 2
    assert 'is the folder of a training run' in capsys.readouterr().err


@pytest.mark.parametrize('argv, message', [
    (['--predictions', 'none.npz', '--class-stats', 'stats.json'], 'there is no file of predictions none.npz'),
    (['--predictions', 'logits.npz'], 'pass --class-stats FILE'),
    (['--predictions', 'stats.json', '--class-stats', 'stats.json'], 'is none of .npz, .pt'),
    (['--predictions', 'damaged.npz', '--class-stats', 'stats.json'], 'damaged.npz cannot be read'),
    (['--predictions', 'words.csv', '--class-stats', 'stats.json'], 'words.csv cannot be read'),
    (['--predictions', 'unnamed.npz', '--class-stats', 'stats.json'], "has ['a']"),
    (['--predictions', 'logits.npz', '--class-stats', 'four.json'], 'of 4 classes, but the network has 3'),
    (['--predictions', 'logits.npz', '--class-stats', 'stats.json', '--landscape'], '--landscape is not allowed'),
    (['--predictions', 'high.npz', '--class-stats', 'stats.json'], 'predicted classes must be in [0, 2]'),
])
def test_files_that_cannot_be_meant_are_one_clear_sentence(argv, message, files, capsys):
    folder, *_ = files
    (folder / 'damaged.npz').write_bytes(b'PK')
    (folder / 'words.csv').write_text('target,prediction\ncat,dog\n')
    (folder / 'four.json').write_text('[5, 4, 3, 2]')
    np.savez('unnamed.npz', a=np.zeros(3))
    np.savez('high.npz', predictions=np.array([0, 7]), targets=np.array([0, 1]))
    assert main(argv) == 2
    error = capsys.readouterr().err
    assert message in error and error.count('\n') == 1


def test_a_report_that_cannot_be_drawn_leaves_the_metrics_and_says_so(files, monkeypatch, capsys):
    from timm_lt.evaluate.cli import output
    monkeypatch.setattr(output, 'write_report', lambda folder: 1 / 0)
    assert evaluate('logits.npz', '--output', 'out') == 3
    assert 'report.html was not written: ZeroDivisionError' in capsys.readouterr().err
    assert (files[0] / 'out' / 'metrics.json').is_file() and (files[0] / 'out' / 'predictions.npz').is_file()

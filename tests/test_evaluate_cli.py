import json
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from timm.models import save_for_hf

from timm_lt.evaluate import _html
from timm_lt.evaluate.cli import main
from timm_lt.evaluate.network import collect, load_network

NAMES = ['ant', 'bee', 'cow']
COUNTS = {'pos_counts': [200, 50, 5], 'num_samples': 255}


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    monkeypatch.setattr(_html, 'DPI', 40)


@pytest.fixture(scope='module')
def workplace(tmp_path_factory):
    root = tmp_path_factory.mktemp('evaluate')
    torch.manual_seed(0)
    model = timm.create_model('resnet20_cifar', num_classes=3)
    save_for_hf(model, root / 'hub', model_config={'label_names': NAMES}, safe_serialization=True)
    torch.save(model.state_dict(), root / 'weights.pth')
    (root / 'stats.json').write_text(json.dumps(COUNTS))
    generator = np.random.default_rng(0)
    for folder, parts in (('images', ('train', 'val', 'test')), ('others', ('test',))):
        for part in parts:
            for name in NAMES if folder == 'images' else ['x']:
                (root / folder / part / name).mkdir(parents=True)
                for k in range(3):
                    pixels = generator.integers(0, 255, (32, 32, 3)).astype(np.uint8)
                    Image.fromarray(pixels).save(root / folder / part / name / f'{k}.png')
    return root


def options(root, **more):
    found = {'checkpoint': root / 'hub', 'dataset': 'folder', 'data-dir': root / 'images',
             'class-stats': root / 'stats.json', 'output': root / 'out', 'bootstrap': 20, 'device': 'cpu', **more}
    return [str(part) for key, value in found.items() if value is not None for part in (f'--{key}', value)]


def test_report_holds_the_figures_of_the_network_itself(workplace, capsys):
    assert main(options(workplace)) == 0
    metrics = json.loads((workplace / 'out' / 'metrics.json').read_text())
    network = load_network(str(workplace / 'hub'))
    config = timm.data.resolve_data_config({}, model=network.model)
    transform = timm.data.create_transform(**config)
    right = []
    for c, name in enumerate(NAMES):
        for path in (workplace / 'images' / 'test' / name).iterdir():
            logits = network.model(transform(Image.open(path).convert('RGB'))[None])
            right.append(int(logits.argmax()) == c)
    assert metrics['top1'] == pytest.approx(100 * np.mean(right))
    assert metrics['model'] == 'resnet20_cifar' and metrics['num_images'] == 9
    assert metrics['split_rule'] == 'gt100_lt20' and metrics['protocol']['test_part'] == "split 'test'"
    assert metrics['per_class'] == [pytest.approx(100 * np.mean(right[3 * c:3 * c + 3])) for c in range(3)]
    assert (workplace / 'out' / 'report.html').is_file() and len(metrics['weight_norms']) == 3
    printed = capsys.readouterr().out
    assert 'balanced accuracy' in printed and 'report.html' in printed


def test_landscape_and_open_set_stand_in_the_report(workplace):
    command = options(
        workplace, output=workplace / 'full', **{
            'open-set': 'folder', 'open-set-dir': workplace / 'others', 'landscape-images': 2})
    assert main([*command, '--landscape', '--open-set-score', 'softmax', 'energy', 'prototype']) == 0
    metrics = json.loads((workplace / 'full' / 'metrics.json').read_text())
    assert [r['score'] for r in metrics['open_set']] == ['softmax', 'energy', 'prototype']
    assert all(r['num_known'] == 9 and r['num_unknown'] == 3 for r in metrics['open_set'])
    assert all("part 'val'" in r['threshold_rule'] for r in metrics['open_set'])
    landscape = metrics['landscape']
    assert landscape['num_images'] == {'all': 6, 'many': 2, 'medium': 2, 'few': 2}
    assert set(landscape['line']['loss']) == {'many', 'medium', 'few'}
    assert landscape['top_eigenvalue']['few'] is not None
    page = (workplace / 'full' / 'report.html').read_text()
    assert 'Loss landscape' in page and 'Open set' in page


def test_threshold_is_never_chosen_on_the_tested_part(workplace, capsys):
    command = options(workplace, **{'open-set': 'folder', 'open-set-dir': workplace / 'others', 'split': 'val'})
    assert main([*command, '--threshold-split', 'val']) == 2
    assert "cannot be chosen on 'val'" in capsys.readouterr().err
    assert main(command) == 0  # without a further validation part: the training images
    metrics = json.loads((workplace / 'out' / 'metrics.json').read_text())
    assert all("part 'train'" in r['threshold_rule'] for r in metrics['open_set'])


def test_weights_file_gives_the_same_network(workplace):
    network = load_network(str(workplace / 'weights.pth'), architecture='resnet20_cifar', num_classes=3)
    input = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.model(input), load_network(f'local-dir:{workplace}/hub').model(input))


def one_sentence(capsys, argv):
    assert main(argv) == 2
    text = capsys.readouterr().err
    assert text.startswith('timm_lt.evaluate: error: ') and text.count('\n') == 1 and 'Traceback' not in text
    return text


def test_missing_class_stats_are_one_clear_sentence(workplace, capsys):
    assert 'pass --class-stats' in one_sentence(capsys, options(workplace, **{'class-stats': None}))
    text = one_sentence(capsys, options(workplace, **{'class-stats': workplace / 'none.json'}))
    assert 'no class-stats file' in text


def test_class_stats_of_other_classes_are_one_clear_sentence(workplace, capsys):
    path = workplace / 'four.json'
    path.write_text(json.dumps([5, 4, 3, 2]))
    text = one_sentence(capsys, options(workplace, **{'class-stats': path}))
    assert 'of 4 classes, but the network has 3' in text


def test_data_of_other_classes_are_one_clear_sentence(workplace, capsys):
    text = one_sentence(capsys, options(workplace, dataset='timm_lt/digits', **{'data-dir': None}))
    assert 'has 10 classes, but the network has 3' in text
    assert 'x' in one_sentence(capsys, options(workplace, **{'data-dir': workplace / 'others'}))


@pytest.mark.parametrize('damage', ['none', 'empty', 'pickle', 'cut'])
def test_unreadable_checkpoint_is_one_clear_sentence(damage, workplace, tmp_path, capsys):
    folder = tmp_path / 'checkpoint'
    if damage != 'none':
        folder.mkdir()
    if damage in ('pickle', 'cut'):
        (folder / 'config.json').write_bytes((workplace / 'hub' / 'config.json').read_bytes())
        weights = (workplace / 'hub' / 'model.safetensors').read_bytes()
        (folder / 'model.safetensors').write_bytes(b'\x80\x02' if damage == 'pickle' else weights[:2000])
    text = one_sentence(capsys, options(workplace, checkpoint=folder))
    assert 'cannot be read' in text


def test_weights_file_without_network_or_of_another_one_is_one_clear_sentence(workplace, capsys):
    assert '--model' in one_sentence(capsys, options(workplace, checkpoint=workplace / 'weights.pth'))
    command = options(workplace, checkpoint=workplace / 'weights.pth', model='resnet32_cifar')
    assert 'cannot be read into resnet32_cifar' in one_sentence(capsys, command)


def test_runs_are_compared(workplace, capsys):
    assert main(options(workplace, output=workplace / 'a')) == 0
    assert main(options(workplace, output=workplace / 'b')) == 0
    page = workplace / 'comparison.html'
    assert main(['compare', str(workplace / 'a'), str(workplace / 'b'), '--output', str(page)]) == 0
    assert 'McNemar' in page.read_text() and str(page) in capsys.readouterr().out
    assert 'no metrics.json' in one_sentence(capsys, ['compare', str(workplace)])


def test_features_are_what_the_classifier_takes(workplace):
    network = load_network(str(workplace / 'hub'))
    batches = [(torch.randn(3, 3, 32, 32), torch.tensor([0, 1, 2]))] * 2
    logits, targets, features = collect(network.model, batches, with_features=True)
    layer = network.model.get_classifier()
    assert torch.allclose(F.linear(features, layer.weight, layer.bias), logits, atol=1e-5)
    assert targets.tolist() == [0, 1, 2] * 2


def test_command_runs_as_a_module_and_loads_no_plotting_library_before_it_needs_one():
    code = (
        'import runpy, sys, timm_lt.evaluate\n'
        'sys.argv = ["evaluate", "--help"]\n'
        'try:\n'
        '    runpy.run_module("timm_lt.evaluate", run_name="__main__")\n'
        'except SystemExit as e:\n'
        '    print("status", e.code)\n'
        'print([m for m in ("matplotlib", "torchmetrics", "sklearn", "scipy", "accelerate") if m in sys.modules])\n')
    found = subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True)
    assert '--class-stats' in found.stdout
    assert found.stdout.splitlines()[-2:] == ['status 0', '[]']

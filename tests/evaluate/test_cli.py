import json
import pickle
import shutil
import subprocess
import sys

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from PIL import Image
from report_cases import coarse_pictures  # noqa: F401
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf

from timm_lt import ClassDistribution
from timm_lt.evaluate.cli import build_parser, checkpoint, main
from timm_lt.evaluate.cli.data import Data
from timm_lt.evaluate.cli.network import collect, load_network
from timm_lt.evaluate.metrics.openset import SCORES
from timm_lt.hub import Checkpoint
from timm_lt.posthoc import PostHoc

NAMES = ['ant', 'bee', 'cow']
COUNTS = {'pos_counts': [200, 50, 5], 'num_samples': 255}
COUNTED = ClassDistribution(COUNTS['pos_counts'])


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
    assert main([*command, '--landscape', '--open-set-score', *SCORES]) == 0
    metrics = json.loads((workplace / 'full' / 'metrics.json').read_text())
    assert [r['score'] for r in metrics['open_set']] == list(SCORES)
    assert all(r['num_known'] == 9 and r['num_unknown'] == 3 for r in metrics['open_set'])
    assert all("part 'val'" in r['threshold_rule'] for r in metrics['open_set'])
    landscape = metrics['landscape']
    assert landscape['num_images'] == {'all': 6, 'many': 2, 'medium': 2, 'few': 2}
    assert set(landscape['line']['loss']) == {'many', 'medium', 'few'}
    assert landscape['top_eigenvalue']['few'] is not None
    page = (workplace / 'full' / 'report.html').read_text()
    assert 'Loss landscape' in page and 'Open set' in page and 'a rejected one counts as wrong' in page
    assert all(r['split_rule'] == 'gt100_lt20' and r['few'] is not None for r in metrics['open_set'])


def test_threshold_is_never_chosen_on_the_tested_part(workplace, capsys):
    command = options(workplace, **{'open-set': 'folder', 'open-set-dir': workplace / 'others', 'split': 'val'})
    assert main([*command, '--threshold-split', 'val']) == 2
    assert "cannot be chosen on 'val'" in capsys.readouterr().err
    assert main(command) == 0  # without a further validation part: the training images
    metrics = json.loads((workplace / 'out' / 'metrics.json').read_text())
    assert all("part 'train'" in r['threshold_rule'] for r in metrics['open_set'])
    assert 'training images, whose scores are higher' in metrics['open_set'][0]['threshold_rule']


@pytest.mark.parametrize('tested, threshold', [('val', 'validation'), ('test', 'testing'), ('train', None)])
def test_other_names_of_the_tested_part_set_no_threshold(tested, threshold, workplace, capsys):
    if tested == 'train':  # a part that there is nothing beside
        command = {'data-dir': workplace / 'images' / 'train', 'class-stats': workplace / 'stats.json'}
    else:
        command = {'threshold-split': threshold}
    command = options(workplace, split=tested, **command, **{
        'open-set': 'folder', 'open-set-dir': workplace / 'others'})
    assert 'the part that is tested' in one_sentence(capsys, command)


def write_lists(root):
    lines = [f'{{part}}/{name}/{k}.png {c}' for c, name in enumerate(NAMES) for k in range(3)]
    for part in ('train', 'test'):
        (root / f'list_{part}.txt').write_text('\n'.join(lines).replace('{part}', part))


@pytest.mark.parametrize('name', ['list_test.txt', 'list_{split}.txt'])
def test_list_that_is_the_same_for_each_part_sets_no_threshold(name, workplace, capsys):
    write_lists(workplace)
    command = options(
        workplace, dataset=f'list/{workplace}/{name}', split='test', **{
            'open-set': 'folder', 'open-set-dir': workplace / 'others'})
    if '{split}' in name:
        assert main([*command, '--open-set-score', 'prototype']) == 0
        command += ['--threshold-split', 'testing']
    assert 'its name holds {split}' in one_sentence(capsys, command)


def test_prototypes_are_never_taken_from_tested_images(workplace, capsys):
    command = options(workplace, split='train', **{
        'open-set': 'folder', 'open-set-dir': workplace / 'others', 'threshold-split': 'val'})
    assert 'scores cannot be fitted' in one_sentence(capsys, [*command, '--open-set-score', 'prototype'])
    assert main(command) == 0


@pytest.mark.parametrize('name', ['timm_lt/digits', 'torch/cifar10'])
@pytest.mark.parametrize('one, two, shared', [
    ('test', 'validation', True), ('val', 'testing', True), ('train', 'training', True), ('test', 'train', False)])
def test_data_with_two_parts_have_one_test_part_of_many_names(name, one, two, shared):
    checkpoint = Checkpoint(None, None, None, None, {}, {}, None)
    data = Data(build_parser().parse_args(['--checkpoint', 'x', '--dataset', name]), checkpoint, COUNTED)
    assert data.share_images((one, None), (two, None)) == shared


def test_the_threshold_of_a_score_is_kept_in_the_checkpoint(workplace, capsys, tmp_path):
    copy = shutil.copytree(workplace / 'hub', tmp_path / 'hub')
    command = options(workplace, checkpoint=copy, output=tmp_path / 'out', **{
        'open-set': 'folder', 'open-set-dir': workplace / 'others', 'keep-threshold': 'energy'})
    assert main(command) == 0
    metrics = json.loads((tmp_path / 'out' / 'metrics.json').read_text())
    report = next(r for r in metrics['open_set'] if r['score'] == 'energy')
    kept = load_network(str(copy)).open_set
    assert (kept.score, kept.threshold, kept.rule) == ('energy', report['threshold'], report['threshold_rule'])
    (copy / 'open_set.json').write_text('{"score": "energy"}')
    assert 'open_set.json is damaged' in one_sentence(capsys, command)
    assert 'reads logits alone' in one_sentence(capsys, [*command, '--keep-threshold', 'vim'])


@pytest.mark.parametrize('option', [
    'open-set-dir', 'open-set-split', 'open-set-score', 'threshold-split', 'keep-threshold'])
def test_options_of_an_open_set_without_one_are_refused(option, workplace, capsys):
    value = 'energy' if option == 'open-set-score' else 'x'
    assert f'--{option} is of --open-set NAME' in one_sentence(capsys, options(workplace, **{option: value}))


def copy_checkpoint(workplace, folder, change):
    shutil.copytree(workplace / 'hub', folder)
    change(folder)
    return folder


def break_weights(folder):
    weights = load_file(folder / 'model.safetensors')
    weights['fc.weight'][0] = float('nan')
    save_file(weights, folder / 'model.safetensors')


def test_network_with_nan_weights_gives_a_report_that_says_so(workplace, tmp_path, capsys):
    folder = copy_checkpoint(workplace, tmp_path / 'nan', break_weights)
    assert main(options(workplace, checkpoint=folder)) == 0
    assert '9 images have scores that are NaN' in capsys.readouterr().out
    metrics = json.loads((workplace / 'out' / 'metrics.json').read_text())
    assert metrics['non_finite'] == 9 and metrics['ece'] is None and metrics['weight_norms'] is None
    assert '9 images have scores that are NaN' in (workplace / 'out' / 'report.html').read_text()


def test_correction_of_a_checkpoint_says_what_it_was_fitted_on_and_chosen_by(workplace, tmp_path, capsys):
    posthoc = PostHoc('logit_adjust', 0.5, class_counts=[200, 50, 5], metric='balanced_accuracy', score=0.75)

    def add_correction(folder):
        (folder / 'posthoc.json').write_text(json.dumps(posthoc.to_dict()))
        (folder / 'metrics.json').write_text(json.dumps({'corrected': {'fitted_on': 'the validation part'}}))

    command = options(workplace, checkpoint=copy_checkpoint(workplace, tmp_path / 'corrected', add_correction), **{
        'open-set': 'folder', 'open-set-dir': workplace / 'others'})
    assert main(command) == 0
    metrics = json.loads((workplace / 'out' / 'metrics.json').read_text())
    assert metrics['protocol']['correction_fitted_on'] == 'the validation part'
    assert metrics['protocol']['correction_strength_chosen_by'] == 'balanced_accuracy of the validation part, ' \
                                                                   '75.00% there'
    assert metrics['open_set'][0]['predictions'] == f'corrected by {posthoc.label}'
    posthoc = PostHoc('rebalance', transductive=True)
    copy_checkpoint(workplace, tmp_path / 'transductive', add_correction)
    assert main([*command, '--checkpoint', str(tmp_path / 'transductive')]) == 0
    metrics = json.loads((workplace / 'out' / 'metrics.json').read_text())
    assert metrics['protocol']['correction_strength_chosen_by'] == 'nothing: as given'
    assert metrics['transductive'] and 'is left out' in metrics['open_set'][0]['predictions']
    assert 'is left out' in (workplace / 'out' / 'report.html').read_text()


def test_weights_file_gives_the_same_network(workplace):
    network = load_network(str(workplace / 'weights.pth'), architecture='resnet20_cifar', num_classes=3)
    input = torch.randn(2, 3, 32, 32)
    assert torch.equal(network.model(input), load_network(f'local-dir:{workplace}/hub').model(input))


def one_sentence(capsys, argv):
    assert main(argv) == 2
    text = capsys.readouterr().err
    assert text.startswith(('python -m timm_lt.evaluate: error: ', 'python -m timm_lt.evaluate compare: error: '))
    assert text.count('\n') == 1 and 'Traceback' not in text
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


def test_data_that_name_other_classes_are_refused_unless_the_names_are_to_be_ignored(workplace, capsys):
    command = ['--checkpoint', 'digits', '--dataset', 'timm_lt/digits', '--bootstrap', '0', '--device', 'cpu',
               '--output', str(workplace / 'digits')]
    network = load_network('digits')
    network.class_names = [f'digit {i}' for i in range(10)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checkpoint, 'load_network', lambda *args, **kwargs: network)
        text = one_sentence(capsys, command)
        assert "class 0 is '0' in the data set and 'digit 0' in the checkpoint; if only" in text
        assert main([*command, '--ignore-class-names']) == 0
    metrics = json.loads((workplace / 'digits' / 'metrics.json').read_text())
    assert metrics['protocol']['class_names'].startswith('not compared')
    assert 'labels are used as they are' in (workplace / 'digits' / 'report.html').read_text()


@pytest.mark.parametrize('change, message', [
    ({'dataset': 'torch/cifar10', 'data-dir': None}, "'torch/cifar10' needs the folder of its images: --data-dir"),
    ({'dataset': 'folder', 'data-dir': 'nowhere'}, 'there is no folder nowhere (--data-dir)'),
    ({'dataset': None, 'data-dir': None}, 'name a data set by --dataset, or a folder of class folders by --data-dir'),
    ({'open-set': 'folder'}, 'needs the folder of its images: --open-set-dir'),
    ({'device': 'foo'}, "device 'foo' cannot be used"),
])
def test_missing_data_and_devices_are_one_clear_sentence(change, message, workplace, capsys):
    assert message in one_sentence(capsys, options(workplace, **change))


@pytest.mark.parametrize('content', [
    b'\xff\xfe', b'{"pos_counts": [3, -1, 2]}', b'{"pos_counts": [[3], [1], [2]]}', b'[0, 0, 0]', b'{', b'{}'])
def test_unusable_class_stats_are_named(content, workplace, tmp_path, capsys):
    path = tmp_path / 'damaged.json'
    path.write_bytes(content)
    assert one_sentence(capsys, options(workplace, **{'class-stats': path})).count(f'class-stats file {path}') == 1


@pytest.mark.parametrize('content', [b'nothing', pickle.dumps({'a': print}, protocol=2)])
def test_weights_file_with_more_than_tensors_is_refused_without_advice_to_run_it(content, workplace, tmp_path, capsys):
    path = tmp_path / 'weights.pth'
    path.write_bytes(content)
    command = options(workplace, checkpoint=path, model='resnet20_cifar', **{'num-classes': 3})
    text = one_sentence(capsys, command)
    assert 'was not read' in text and 'safetensors' in text and 'weights_only' not in text


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

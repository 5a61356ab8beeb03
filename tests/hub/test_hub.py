"""Checkpoints: folder, card, loading, refusal of unsafe files, what is refused before an upload."""

import json
import os
import pickle

import pytest
import timm
import torch
from hub_run import COUNTS, NAMES, make_run
from hub_server import TOKEN
from huggingface_hub import ModelCard
from safetensors.torch import load_file

import timm_lt
from timm_lt._protocol import protocol_text
from timm_lt.data import create_dataset
from timm_lt.evaluate import report
from timm_lt.hub import HubError, card, load, pull, push, remote, write_hub_folder
from timm_lt.hub.__main__ import main
from timm_lt.hub.folder import write_hub_card
from timm_lt.hub.remote import _status_reason
from timm_lt.posthoc import PostHoc
from timm_lt.training.config import ConfigError, configuration, parse_args, to_yaml


@pytest.fixture
def run_dir(tmp_path):
    folder = tmp_path / 'run'
    network = make_run(folder)
    write_hub_folder(folder, network, posthoc=PostHoc('logit_adjust', tau=0.5, class_counts=COUNTS))
    return folder


def test_hub_folder_holds_weights_counts_recipe_figures_correction_card_and_plots(run_dir):
    names = {str(p.relative_to(run_dir / 'hub')) for p in (run_dir / 'hub').rglob('*') if p.is_file()}
    assert names == {
        'README.md', 'class_distribution.json', 'config.json', 'manifest.json', 'metrics.json', 'model.safetensors',
        'plots/training_curves.png', 'posthoc.json', 'protocol.md', 'recipe.yaml'}
    assert json.loads((run_dir / 'hub/class_distribution.json').read_text())['pos_counts'] == COUNTS
    # paths of the machine do not leave it
    assert str(run_dir.parent) not in ''.join(p.read_text() for p in (run_dir / 'hub').glob('*.[jmy]*'))


def test_hub_folder_recipe_is_accepted_by_the_script(run_dir):
    args = parse_args(['--config', str(run_dir / 'hub' / 'recipe.yaml')])
    assert (args.model.model, args.data.dataset) == ('resnet20_cifar', 'torch/cifar10')


def test_card_metadata_holds_the_measured_figures_and_their_protocol(run_dir):
    found = ModelCard.load(run_dir / 'hub' / 'README.md')
    metrics = json.loads((run_dir / 'metrics.json').read_text())
    data = found.data
    assert (data.library_name, data.license, data.pipeline_tag) == ('timm', 'apache-2.0', 'image-classification')
    assert data.datasets == ['uoft-cs/cifar10'] and {'long-tailed', 'timm_lt'} <= set(data.tags)
    figures = {r.metric_name: r.metric_value for r in data.eval_results}
    assert figures['Top-1'] == pytest.approx(metrics['top1'], abs=1e-4)
    assert figures['Many-shot'] == pytest.approx(metrics['many'], abs=1e-4)
    assert 'Few-shot' not in figures and metrics['few'] is None  # absent, never 0
    assert data.eval_results[0].metric_args == {
        'epoch_chosen_by': 'nothing: the last epoch', 'split_rule': 'gt100_lt20', 'test_part': "split 'test'",
        'transductive': 'no', 'seed': 7}
    assert 'Balanced Meta-Softmax' in found.text and 'arxiv.org' in found.text  # the loss that was used
    assert 'plots/training_curves.png' in found.text and 'logit_adjust, tau 0.5' in found.text


def test_card_links_to_the_protocol_beside_it_or_to_the_address_of_the_documentation(run_dir, monkeypatch):
    folder = run_dir / 'hub'
    assert '[protocol](protocol.md)' in (folder / 'README.md').read_text()
    assert (folder / 'protocol.md').read_text() == protocol_text() and protocol_text().startswith('# Protocol')
    monkeypatch.setattr(card, 'PROTOCOL_URL', 'https://docs.example/protocol.html')
    (folder / 'protocol.md').unlink()
    write_hub_card(run_dir)
    assert '[protocol](https://docs.example/protocol.html)' in (folder / 'README.md').read_text()
    assert not (folder / 'protocol.md').exists()


def test_card_says_that_a_transductive_correction_is_one(tmp_path):
    network = make_run(tmp_path / 'run')
    write_hub_folder(tmp_path / 'run', network, posthoc=PostHoc('rebalance', tau=1.4, transductive=True))
    assert 'statistics of all test images at once' in (tmp_path / 'run/hub/README.md').read_text()
    checkpoint = load(tmp_path / 'run')
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(checkpoint(images), checkpoint.model(images))  # of single images it is left out


@pytest.mark.parametrize('name', timm_lt.list_networks())
def test_local_dir_round_trip_of_every_network_is_bit_identical(tmp_path, name):
    network = make_run(tmp_path / 'run', name)
    folder = write_hub_folder(tmp_path / 'run', network)
    by_timm = timm.create_model(f'local-dir:{folder}', pretrained=True).eval()
    for other in (by_timm, load(folder).model):
        state = other.state_dict()
        assert all(torch.equal(v, state[k]) for k, v in network.state_dict().items())
    config = network.pretrained_cfg
    images = torch.randn(2, *config['input_size'] if config.get('fixed_input_size') else (3, 32, 32))
    with torch.no_grad():
        assert torch.equal(by_timm(images), network(images))


def test_cosine_classifier_is_rebuilt_from_the_folder(tmp_path):
    network = make_run(tmp_path / 'run', cosine_scale=16.0, norm_layer='groupnorm')
    folder = write_hub_folder(tmp_path / 'run', network)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(load(f'local-dir:{folder}').model(images), network(images))


def test_load_gives_model_names_distribution_correction_and_figures(run_dir):
    checkpoint = load(run_dir)
    assert checkpoint.class_names == NAMES and checkpoint.distribution.counts.tolist() == COUNTS
    assert checkpoint.recipe['loss'] == 'balanced_softmax' and 0 <= checkpoint.metrics['top1'] <= 100
    images = torch.randn(2, 3, 32, 32)
    expected = checkpoint.model(images) - 0.5 * (torch.tensor(COUNTS) / sum(COUNTS)).log()
    torch.testing.assert_close(checkpoint(images), expected)
    from PIL import Image
    assert checkpoint.transform(Image.new('RGB', (32, 32))).shape == (3, 32, 32)


def test_half_precision_file_loads_into_a_float32_network(tmp_path):
    network = make_run(tmp_path / 'run')
    folder = write_hub_folder(tmp_path / 'run', network, dtype='float16')
    assert 'stored weights: float16; the metrics were measured before rounding' in (folder / 'README.md').read_text()
    assert load(folder).metrics['protocol']['stored_weights'].startswith('float16')
    assert (folder / 'model.safetensors').stat().st_size < 0.6e6
    state = load(folder).model.state_dict()
    for name, value in network.state_dict().items():
        stored = value.half().float() if value.is_floating_point() else value
        assert torch.equal(state[name], stored) and state[name].dtype == value.dtype


def test_shipped_digits_load_without_a_network_and_have_the_figures_of_their_card():
    checkpoint = load('digits')
    test = create_dataset('timm_lt/digits', split='test')
    images = torch.stack([checkpoint.transform(image) for image, _ in test])
    with torch.no_grad():
        logits = checkpoint(images)
    predicted = logits.argmax(1)
    found = report(logits, test.targets, checkpoint.distribution)
    for figure in ('top1', 'balanced_accuracy', 'many', 'medium', 'few', 'ece', 'ece_few'):
        assert found[figure] == pytest.approx(checkpoint.metrics[figure], abs=0.1), figure
    assert 'float16' in checkpoint.metrics['protocol']['stored_weights']
    assert sum(f.stat().st_size for f in checkpoint.folder.rglob('*')) < 1e6
    by_timm = timm.create_model(f'local-dir:{timm_lt.hub.shipped("digits")}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(by_timm(images).argmax(1), predicted)


@pytest.mark.parametrize('name', timm_lt.hub.list())
def test_shipped_checkpoints_are_small_and_load_by_the_lines_of_their_card(name):
    checkpoint = load(name)
    assert name == checkpoint.folder.name and (checkpoint.folder / 'model.safetensors').stat().st_size < 1e6
    card = (checkpoint.folder / 'README.md').read_text()
    assert f"timm_lt.hub.load('{name}')" in card and 'USER/NAME' not in card
    assert f'{checkpoint.metrics["top1"]:.2f}' in card
    assert '//' not in checkpoint.metrics['dataset'], 'a path of a machine'
    images = torch.zeros(2, checkpoint.in_chans, *checkpoint.model.pretrained_cfg['input_size'][1:])
    by_timm = timm.create_model(f'local-dir:{timm_lt.hub.shipped(name)}', pretrained=True).eval()
    with torch.no_grad():
        assert torch.equal(by_timm(images), checkpoint.model(images))


def test_shipped_checkpoints_keep_the_wheel_small():
    folders = [timm_lt.hub.shipped(name) for name in timm_lt.hub.list()]
    assert sum(f.stat().st_size for folder in folders for f in folder.rglob('*')) < 6e6


def test_shipped_digits_are_the_run_without_options():
    recipe, default = load('digits').recipe, configuration(parse_args([]))
    assert {k: v for k, v in recipe.items() if k in default and default[k] != v} == {}


class Bomb:
    def __reduce__(self):
        return (os.mkdir, (os.environ['BOMB'],))


@pytest.mark.parametrize('file', ['model.safetensors', 'pytorch_model.bin'])
@pytest.mark.parametrize('save', [torch.save, lambda o, p: p.write_bytes(pickle.dumps(o))])
def test_pickled_weights_are_refused_and_never_executed(run_dir, monkeypatch, file, save):
    monkeypatch.setenv('BOMB', str(run_dir / 'exploded'))
    (run_dir / 'hub' / 'model.safetensors').unlink()
    save({'fc.weight': Bomb()}, run_dir / 'hub' / file)
    (run_dir / 'hub' / 'manifest.json').unlink()  # an attacker would leave it out, too
    with pytest.raises(HubError, match='pickled'):
        load(run_dir)
    with pytest.raises(HubError, match='pickled'):
        push(run_dir, 'me/name')
    assert not (run_dir / 'exploded').exists()


def test_push_refuses_a_pickle_beside_good_weights(run_dir):
    torch.save({}, run_dir / 'hub' / 'plots' / 'optimizer.pt')
    with pytest.raises(HubError, match='plots/optimizer.pt, a pickled file'):
        push(run_dir, 'me/name')


def test_changed_weights_are_refused(run_dir):
    path = run_dir / 'hub' / 'model.safetensors'
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(HubError, match='was changed after it was written.*Download it again'):
        load(run_dir)


@pytest.mark.parametrize('length', [4, 100, 5000])
def test_truncated_weights_without_a_manifest_are_refused(run_dir, length):
    path = run_dir / 'hub' / 'model.safetensors'
    path.write_bytes(path.read_bytes()[:length])
    for name in ('manifest.json', 'recipe.yaml'):  # a folder of timm alone
        (run_dir / 'hub' / name).unlink()
    with pytest.raises(HubError, match='damaged'):
        load(run_dir)


def test_missing_manifest_is_refused_in_a_folder_of_this_package(run_dir):
    (run_dir / 'hub' / 'manifest.json').unlink()
    with pytest.raises(HubError, match='its manifest.json, which records the SHA-256 of the weights, is missing'):
        load(run_dir)


@pytest.mark.parametrize('name, content, message', [
    ('posthoc.json', b'{"method": "logit_adjust", "class_counts": [3, 2, 1]}', 'class_counts is of 3 classes'),
    ('posthoc.json', b'{"method": "tau_normalize", "weight_norms": [1]}', 'weight_norms is of 1 classes'),
    ('recipe.yaml', b'\xff\xfe\xfa', 'recipe.yaml is damaged'), ('recipe.yaml', b'hello', 'recipe.yaml is damaged')])
def test_damaged_files_beside_the_weights_are_refused(run_dir, name, content, message):
    (run_dir / 'hub' / name).write_bytes(content)
    with pytest.raises(HubError, match=message):
        load(run_dir)


def test_weights_of_another_network_are_refused(run_dir):
    config = json.loads((run_dir / 'hub' / 'config.json').read_text())
    (run_dir / 'hub' / 'config.json').write_text(json.dumps(config | {'architecture': 'resnet32_cifar'}))
    with pytest.raises(HubError, match='do not fit the network'):
        load(run_dir)


@pytest.mark.parametrize('name, message', [
    ('nothing-there', 'no checkpoint'), ('local-dir:nothing/there', 'no checkpoint'), ('a/b/c', 'no checkpoint')])
def test_unknown_checkpoint_is_one_message(name, message):
    with pytest.raises(HubError, match=message):
        load(name)


def test_push_without_a_network_keeps_the_folder_and_says_what_to_do(run_dir, monkeypatch, capsys):
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    assert main(['push', str(run_dir), 'me/name']) == 2  # the tests run with HF_HUB_OFFLINE
    error = capsys.readouterr().err
    assert 'HF_HUB_OFFLINE is set' in error and f'kept in {run_dir}/hub' in error and error.count('\n') == 1
    load(run_dir)


def test_advice_after_a_failed_push_repeats_its_options(run_dir, monkeypatch):
    monkeypatch.setattr(remote, 'has_token', lambda: False)
    folder = run_dir.rename(run_dir.with_name('my run'))
    with pytest.raises(HubError) as e:
        push(folder, 'me/name', private=True, revision='seed-1')
    assert f"hub push '{folder}/hub' me/name --private --revision seed-1" in str(e.value)


def test_push_refuses_a_folder_that_holds_a_token(run_dir, monkeypatch):
    monkeypatch.setenv('HF_TOKEN', 'secret-of-mine')
    with open(run_dir / 'hub' / 'recipe.yaml', 'a') as f:
        f.write('dataset_kwargs: {token: secret-of-mine}\n')
    with pytest.raises(HubError, match='recipe.yaml holds a token') as e:
        push(run_dir, 'me/name')
    assert 'secret-of-mine' not in str(e.value)


@pytest.mark.parametrize('repo_id', ['name', 'a/b/c', 'me/na me', '-me/name', 'me/name.git'])
def test_push_refuses_a_name_that_the_hub_does_not_allow(run_dir, repo_id):
    with pytest.raises(HubError, match='name'):
        push(run_dir, repo_id)
    with pytest.raises(HubError, match='name'):
        pull(repo_id, run_dir)


@pytest.mark.parametrize('status, said, advice', [
    (401, '', 'log in again'), (403, '', 'choose another USER/NAME'), (409, '', 'choose another USER/NAME'),
    (403, 'Private repository storage limit reached', 'free some'), (402, '', 'free some'), (413, '', 'too large'),
    (429, '', 'wait'), (503, '', 'try again later'), (418, 'teapot', 'teapot')])
def test_each_refusal_of_the_hub_says_what_to_do(status, said, advice):
    assert advice in _status_reason(status, said)


def test_published_figure_and_hub_block_go_into_the_card_but_not_among_the_results(tmp_path):
    config = tmp_path / 'recipe.yaml'
    config.write_text(
        'imbalance_ratio: 50\npublished: {top1: {100: 52.1, 50: 56.0}, network: ResNet-32, source: Table 3}\n'
        'hub: {license: mit, tags: [owls], dataset: me/owls, dataset_name: Owls-LT}\n')
    network = make_run(tmp_path / 'run', options=['--config', str(config)])
    card = ModelCard.load(write_hub_folder(tmp_path / 'run', network) / 'README.md')
    assert 'Top-1 56.0 at imbalance ratio 50 with ResNet-32. Source: Table 3' in card.text
    assert card.data.license == 'mit' and card.data.datasets == ['me/owls'] and 'owls' in card.data.tags
    assert 56.0 not in [r.metric_value for r in card.data.eval_results]


@pytest.mark.parametrize('options, line, cited', [
    (['--loss', 'bcl', '--opt', 'gsa', '--gkp'], 'bcl + gsa + gkp', ['`gkp`']),
    (['--loss', 'ldam', '--drw-epoch', '1'], 'ldam + sgd + drw', ['`ldam`', '`drw`: K. Cao']),
    (['--loss', 'ce', '--mixup', '1', '--cutmix', '1'], 'ce + sgd + mixup + cutmix', ['`mixup`', '`cutmix`']),
    (['--loss', 'ce', '--posthoc', 'logit_adjust'], 'ce + sgd + logit_adjust', ['`logit_adjust`: A. Menon'])])
def test_card_names_and_cites_every_method_of_the_recipe(options, line, cited, tmp_path):
    network = make_run(tmp_path / 'run', options=options)
    text = ModelCard.load(write_hub_folder(tmp_path / 'run', network) / 'README.md').text
    assert f'timm_lt: {line}, ' in text and f'resnet20_cifar, {line}, ' in text
    assert all(c in text.partition('## Methods')[2] for c in cited)


@pytest.mark.parametrize('line, message', [
    ('published: {top1: 52.1}', 'needs a source'), ('published: {topp1: 5, source: x}', "'top1'"),
    ('hub: {licence: mit}', "'license'"), ('hub: mit', 'pairs'), ('publishd: {}', "'published'")])
def test_mistyped_recipe_metadata_is_refused(tmp_path, line, message):
    (tmp_path / 'recipe.yaml').write_text(line)
    with pytest.raises(ConfigError, match=message):
        parse_args(['--config', str(tmp_path / 'recipe.yaml')])


@pytest.mark.parametrize('options, message', [
    (['--push-to-hub', 'name'], 'USER/NAME'), (['--private'], 'not given'), (['--revision', 'x'], 'not given')])
def test_hub_options_are_checked_before_training(options, message):
    with pytest.raises(ConfigError, match=message):
        parse_args(options)


def test_args_of_a_run_hold_no_hub_token(monkeypatch):
    monkeypatch.setenv('HF_TOKEN', TOKEN)
    assert TOKEN not in to_yaml(parse_args([]))


@pytest.mark.parametrize('dtype', ['float32', 'float16', 'bfloat16'])
def test_weights_of_any_memory_format_are_stored_and_the_model_keeps_its_own(tmp_path, dtype):
    network = make_run(tmp_path / 'run').to(memory_format=torch.channels_last)
    weight = network.layer1[0].conv1.weight
    assert not weight.is_contiguous()
    folder = write_hub_folder(tmp_path / 'run', torch.compile(network, backend='eager'), dtype=dtype)
    assert not weight.is_contiguous() and weight.dtype == torch.float32
    stored = load_file(folder / 'model.safetensors')
    assert stored.keys() == network.state_dict().keys()
    for name, value in network.state_dict().items():
        expected = value.to(getattr(torch, dtype)) if value.is_floating_point() else value
        assert torch.equal(stored[name], expected) and stored[name].is_contiguous()

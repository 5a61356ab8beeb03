"""Exported files: the same scores as the network in Python, for any batch size, with correction and class names."""

import importlib.util
import json

import numpy as np
import pytest
import timm
import torch
from PIL import Image

from timm_lt import cli, hub
from timm_lt.export import FORMATS, ExportError, ExportMismatch, export, formats
from timm_lt.hub import Checkpoint
from timm_lt.posthoc import PostHoc

COUNTS = tuple(2 ** c for c in range(10))
CORRECTIONS = [
    PostHoc('logit_adjust', tau=1.5, class_counts=COUNTS),
    PostHoc('temperature', tau=2.0),
    PostHoc('tau_normalize', tau=0.7, weight_norms=tuple(map(float, COUNTS)), bias=tuple(c / 10 for c in range(10))),
    PostHoc('rebalance', tau=1.2, log_column_sums=tuple(-float(c) for c in range(10))),
]


@pytest.fixture
def checkpoint():
    return hub.load('digits')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp('photos'), np.random.default_rng(0)
    for i in range(3):
        Image.fromarray(generator.integers(0, 255, (40, 32, 3), np.uint8)).save(folder / f'{i}.png')
    (folder / 'bad.png').write_text('no image')
    return folder


def images_for(model, count):
    size = model.pretrained_cfg['input_size']
    return torch.randn(count, *size, generator=torch.Generator().manual_seed(1))


def test_onnxruntime_gives_the_corrected_scores_and_the_facts(checkpoint, photos, tmp_path):
    onnxruntime = pytest.importorskip('onnxruntime')
    pytest.importorskip('onnxscript')
    checkpoint.posthoc = CORRECTIONS[0]
    exported = export(checkpoint, tmp_path / 'digits.onnx', images=photos)
    assert exported.images == 3 and exported.difference <= 1e-4 and exported.correction == checkpoint.posthoc.label
    session = onnxruntime.InferenceSession(str(tmp_path / 'digits.onnx'))
    for count in (1, 5):
        images = images_for(checkpoint.model, count)
        with torch.no_grad():
            expected = checkpoint(images)
        scores, probabilities = session.run(None, {'images': images.numpy()})
        np.testing.assert_allclose(scores, expected, atol=1e-4)
        np.testing.assert_allclose(probabilities, expected.softmax(1), atol=1e-4)
    facts = {k: json.loads(v) for k, v in session.get_modelmeta().custom_metadata_map.items()}
    assert facts['class_names'] == checkpoint.class_names and facts['correction'] == checkpoint.posthoc.label
    assert facts['input_size'] == [3, 32, 32] and len(facts['mean']) == len(facts['std']) == 3


@pytest.mark.parametrize('format', ['torch_export', 'torchscript'])
@pytest.mark.parametrize('correction', [None, *CORRECTIONS], ids=lambda c: getattr(c, 'method', 'none'))
def test_torch_formats_give_the_corrected_scores(format, correction, checkpoint, tmp_path):
    checkpoint.posthoc = correction
    file = tmp_path / f'digits{FORMATS[format].suffix}'
    export(checkpoint, file)
    run, facts = FORMATS[format].open(file)
    for count in (1, 5):
        images = images_for(checkpoint.model, count)
        with torch.no_grad():
            torch.testing.assert_close(run(images)[0], checkpoint(images).float(), atol=1e-4, rtol=0)
    assert facts['class_names'] == checkpoint.class_names
    assert facts['correction'] == (correction.label if correction else None)


@pytest.mark.parametrize('name, options', [
    ('resnet32_cifar', {'cosine_scale': 16.0}), ('cosine_network', {'network': 'test_vit'}),
])
@pytest.mark.parametrize('format', ['torch_export', 'torchscript'])
def test_networks_are_exported(name, options, format, tmp_path):
    model = timm.create_model(name, num_classes=4, **options).eval()
    checkpoint = Checkpoint(model, list('abcd'), None, None, {}, {}, None, name)
    assert export(checkpoint, tmp_path / 'file', format=format).difference <= 1e-4


def test_a_file_that_differs_does_not_appear(checkpoint, tmp_path, monkeypatch, capsys):
    file = tmp_path / 'digits.pt2'
    file.write_text('an older export')
    write = formats.TorchExportFormat.write

    def write_another(self, network, *args):
        weight = network.model.conv1.weight
        with torch.no_grad():
            weight.add_(0.1)
            write(self, network, *args)
            weight.sub_(0.1)

    monkeypatch.setattr(formats.TorchExportFormat, 'write', write_another)
    with pytest.raises(ExportMismatch, match='scores differ from those of the network by'):
        export(checkpoint, file)
    assert file.read_text() == 'an older export' and list(tmp_path.iterdir()) == [file]
    assert cli.main(['export', 'digits', str(file)]) == 1
    assert capsys.readouterr().err.startswith('timm-lt export: error: the exported scores differ')


def test_a_network_that_cannot_be_exported_is_named(checkpoint, tmp_path):
    class Odd(type(checkpoint.model)):
        def forward(self, x):
            return super().forward(x) + float(x.sum())  # reads a value, which no graph can hold

    checkpoint.model.__class__ = Odd
    with pytest.raises(ExportError, match='resnet20_cifar cannot be exported to .*digits.pt2'):
        export(checkpoint, tmp_path / 'digits.pt2')
    assert not list(tmp_path.iterdir())


def test_a_transductive_correction_is_refused(checkpoint, tmp_path):
    checkpoint.posthoc = PostHoc('rebalance', transductive=True)
    with pytest.raises(ExportError, match='needs all images at once'):
        export(checkpoint, tmp_path / 'digits.pt2')
    assert export(checkpoint, tmp_path / 'digits.pt2', use_posthoc=False).correction is None


def test_a_missing_package_is_named(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(importlib.util, 'find_spec', lambda name: None)
    assert cli.main(['export', 'digits', str(tmp_path / 'x.onnx')]) == 2
    text = capsys.readouterr().err
    assert "onnx needs onnx, onnxscript, onnxruntime; install by pip install 'timm-lt[export]'" in text


@pytest.mark.parametrize('argv, message', [
    (['nowhere', 'x.pt2'], "checkpoint 'nowhere' cannot be read"),
    (['digits', 'x.bin'], 'the output must end in .onnx, .pt2, .ts'),
    (['digits', 'x.pt2', '--images', 'nowhere'], 'there is no file, folder or dataset'),
    (['digits', 'x.pt2', '--images', __file__], 'can be read, so nothing can be compared'),
])
def test_errors_of_the_command_are_one_sentence(argv, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main(['export', *argv]) == 2
    text = capsys.readouterr().err
    assert text.startswith('timm-lt export: error: ') and message in text and text.count('\n') == 1
    assert not list(tmp_path.iterdir())

"""Predictions of files, folders, lists and datasets."""

import csv
import itertools
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from datasets import Image as ImageFeature
from PIL import Image
from pyarrow import parquet

from timm_lt import cli, hub
from timm_lt.data import ImageReadError
from timm_lt.posthoc import PostHoc
from timm_lt.predict import ImageSource, open_source, parts, predict, predict_images

NAMES = ['1.png', '2.png', '10.png', 'inner/3.png', 'inner/bad.jpg', 'inner/deep/4.png']  # natural order, files first


@pytest.fixture(scope='module')
def checkpoint():
    return hub.load('digits')


@pytest.fixture(scope='module')
def photos(tmp_path_factory):
    folder, generator = tmp_path_factory.mktemp('predict') / 'photos', np.random.default_rng(0)
    (folder / 'inner' / 'deep').mkdir(parents=True)
    for name in NAMES:
        if 'bad' in name:
            (folder / name).write_text('no image')
        else:
            Image.fromarray(generator.integers(0, 255, (24, 20, 3), np.uint8)).save(folder / name)
    (folder / 'notes.md').write_text('no image either')
    return folder


def rows_of(file):
    with open(file, encoding='utf-8', newline='') as f:
        return list(csv.DictReader(f))


def test_a_folder_gives_a_row_for_each_image_in_natural_order(checkpoint, photos, tmp_path):
    summary = predict(checkpoint, photos, tmp_path / 'out.csv', top_k=3, batch_size=2)
    rows = rows_of(tmp_path / 'out.csv')
    assert [row['path'] for row in rows] == NAMES
    for row in rows:
        if 'bad' in row['path']:
            assert 'bad.jpg' in row['error'] and not row['label'] and not row['probability_1']
            continue
        expected = list(checkpoint(photos / row['path']).items())[:3]
        assert [row[f'label_{k}'] for k in (1, 2, 3)] == [name for name, _ in expected] and not row['error']
        assert row['label'] == row['label_1']
        got = [float(row[f'probability_{k}']) for k in (1, 2, 3)]
        assert got == pytest.approx([p for _, p in expected], abs=1e-5)
    assert (summary.images, summary.errors, summary.labels.total()) == (6, 1, 5)
    assert not (tmp_path / 'out.csv.parts').exists()


def test_formats_hold_the_same(checkpoint, photos, tmp_path):
    for suffix in ('csv', 'parquet', 'jsonl'):
        predict(checkpoint, photos, tmp_path / f'out.{suffix}', top_k=2)
    table = parquet.read_table(tmp_path / 'out.parquet').to_pylist()
    lines = [json.loads(line) for line in (tmp_path / 'out.jsonl').read_text().splitlines()]
    for row, cells, line in zip(rows_of(tmp_path / 'out.csv'), table, lines, strict=True):
        assert row['path'] == cells['path'] == line['path']
        assert (row['label'] or None) == cells['label'] == line['label']
        assert (row['error'] or None) == cells['error'] == line['error']
        if not row['error']:
            assert line['top'][1]['label'] == cells['label_2'] == row['label_2']
            assert line['top'][1]['probability'] == pytest.approx(cells['probability_2'], abs=1e-6)


def test_workers_keep_the_order(checkpoint, photos):
    source = open_source(photos)
    one = list(predict_images(checkpoint, source, batch_size=1))
    two = list(predict_images(checkpoint, source, batch_size=1, workers=2))
    assert one == two


def test_an_image_is_turned_upright(checkpoint, photos, tmp_path):
    upright = Image.open(photos / '1.png')
    exif = Image.Exif()
    exif[0x0112] = 6  # a viewer turns the stored image by 90 degrees to the right
    upright.transpose(Image.Transpose.ROTATE_90).save(tmp_path / 'turned.png', exif=exif)
    turned, = predict_images(checkpoint, open_source(tmp_path / 'turned.png'))
    expected, = predict_images(checkpoint, open_source(photos / '1.png'))
    assert turned.probabilities == expected.probabilities


def write_list(file, names):
    if file.suffix == '.txt':
        file.write_text('\n'.join(names) + '\n')
    elif file.suffix == '.parquet':
        import pyarrow as pa
        parquet.write_table(pa.table({'id': range(len(names)), 'file': names}), file)
    else:
        mark = ',' if file.suffix == '.csv' else '\t'
        file.write_text(f'id{mark}file\n' + ''.join(f'{i}{mark}{name}\n' for i, name in enumerate(names)))


@pytest.mark.parametrize('suffix', ['.txt', '.csv', '.tsv', '.parquet'])
def test_lists_need_no_labels(suffix, checkpoint, photos, tmp_path):
    names = ['10.png', 'inner/3.png', 'gone.png', '1.png']
    write_list(tmp_path / f'list{suffix}', names)
    found = list(predict_images(checkpoint, open_source(tmp_path / f'list{suffix}', data_dir=photos)))
    assert [p.path for p in found] == names
    assert [bool(p.error) for p in found] == [False, False, True, False]


def test_a_training_list_and_a_table_without_header_are_read(photos, tmp_path):
    (tmp_path / 'train.txt').write_text('1.png 0\n\ninner/3.png 1\n')
    (tmp_path / 'plain.csv').write_text('1.png,cat\ninner/3.png,dog\n')
    (tmp_path / 'holes.csv').write_text('path,label\n1.png,cat\n,dog\n')
    for name, expected in (('train.txt', ['1.png', 'inner/3.png']), ('plain.csv', ['1.png', 'inner/3.png']),
                           ('holes.csv', ['1.png', ''])):
        assert [n for n, _ in open_source(tmp_path / name, data_dir=photos).entries()] == expected


def test_an_unclear_table_is_refused_and_its_column_can_be_named(photos, tmp_path):
    (tmp_path / 'odd.csv').write_text('photo,kind\n1.png,cat\n')
    with pytest.raises(ValueError, match='no usual column of paths'):
        open_source(tmp_path / 'odd.csv')
    assert open_source(tmp_path / 'odd.csv', data_dir=photos, input_key='photo').count() == 1


def test_datasets_go_by_name(checkpoint, photos, tmp_path):
    found = list(itertools.islice(predict_images(checkpoint, open_source('timm_lt/digits')), 200))
    dataset = open_source('timm_lt/digits').dataset
    right = np.mean([p.label == dataset.class_names[t] for p, t in zip(found, dataset.targets)])
    assert right > 0.7
    unlabelled = Dataset.from_dict({'image': [str(photos / '1.png'), str(photos / 'inner' / '3.png')]})
    unlabelled.cast_column('image', ImageFeature()).to_parquet(str(tmp_path / 'set' / 'test.parquet'))
    hugging = list(predict_images(checkpoint, open_source(f'hfds/{tmp_path}/set', data_dir=tmp_path / 'cache')))
    files = [p for p in predict_images(checkpoint, open_source(photos)) if p.path in ('1.png', 'inner/3.png')]
    assert [p.labels for p in hugging] == [p.labels for p in files]
    np.testing.assert_allclose([p.probabilities for p in hugging], [p.probabilities for p in files], atol=1e-6)


def test_a_source_that_is_not_there_is_an_error():
    with pytest.raises(FileNotFoundError, match="no file, folder or dataset 'nowhere'"):
        open_source('nowhere')


class Endless(ImageSource):
    identity = {}

    def entries(self):
        return ((str(i), i) for i in itertools.count())

    def read(self, key, mode):
        if key % 3 == 2:
            raise ImageReadError('every third')
        return Image.new(mode, (8, 8), key % 256)


def test_images_are_read_while_predictions_are_taken(checkpoint):
    found = list(itertools.islice(predict_images(checkpoint, Endless(), start=100, batch_size=4), 10))
    assert [p.path for p in found] == [str(i) for i in range(100, 110)]
    assert [bool(p.error) for p in found] == [i % 3 == 2 for i in range(100, 110)]


def test_the_stored_correction_is_applied_unless_it_is_transductive(checkpoint, photos):
    source = open_source(photos / '1.png')
    plain, = predict_images(checkpoint, source, top_k=10)
    counts = tuple(10 ** c for c in range(10))
    try:
        checkpoint.posthoc = PostHoc('logit_adjust', tau=1.0, class_counts=counts)
        corrected, = predict_images(checkpoint, source, top_k=10)
        without, = predict_images(checkpoint, source, top_k=10, use_posthoc=False)
        checkpoint.posthoc = PostHoc('rebalance', transductive=True)
        transductive, = predict_images(checkpoint, source, top_k=10)
    finally:
        checkpoint.posthoc = None
    assert without == plain == transductive
    p = dict(zip(plain.labels, plain.probabilities))
    shifted = {name: p[name] / count for name, count in zip(checkpoint.class_names, counts)}
    expected = max(shifted, key=shifted.get)
    assert corrected.label == expected
    assert corrected.probabilities[0] == pytest.approx(shifted[expected] / sum(shifted.values()), rel=1e-4)


def test_images_below_the_stored_threshold_are_unknown(checkpoint, photos, tmp_path):
    plain = list(predict_images(checkpoint, open_source(photos)))
    sure = [p.probabilities[0] for p in plain if not p.error]
    try:
        checkpoint.open_set = hub.OpenSetThreshold('softmax', sorted(sure)[2])
        summary = predict(checkpoint, photos, tmp_path / 'out.csv')
    finally:
        checkpoint.open_set = None
    rows = [row for row in rows_of(tmp_path / 'out.csv') if not row['error']]
    assert [row['label'] == 'unknown' for row in rows] == [p < sorted(sure)[2] for p in sure]
    assert all(row['label'] in ('unknown', row['label_1']) for row in rows)
    assert summary.labels['unknown'] == 2 and '2 of no known class' in str(summary)


def test_scores_that_are_not_finite_are_an_error_of_the_image(photos):
    broken = hub.load('digits')
    with torch.no_grad():
        broken.model.fc.bias[0] = float('nan')
    found, = predict_images(broken, open_source(photos / '1.png'))
    assert found.error == 'the network gives scores that are not finite' and not found.label


class Interrupted(Endless):
    """Twelve images, the reading of which is interrupted once."""

    stop_at = None

    def entries(self):
        return itertools.islice(super().entries(), 12)

    def read(self, key, mode):
        if key == self.stop_at:
            self.stop_at = None
            raise KeyboardInterrupt
        return super().read(key, mode)


@pytest.mark.parametrize('suffix', ['csv', 'parquet'])
def test_an_interrupted_run_goes_on_from_its_finished_parts(suffix, checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, 'ROWS', 4)
    predict(checkpoint, Interrupted(), tmp_path / f'whole.{suffix}', batch_size=2)
    source, output = Interrupted(), tmp_path / f'out.{suffix}'
    source.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        predict(checkpoint, source, output, batch_size=2)
    assert not output.exists()
    first = tmp_path / f'out.{suffix}.parts' / f'part-000000.{suffix}'
    written = first.stat().st_mtime_ns
    reads = []
    monkeypatch.setattr(Interrupted, 'read', lambda self, key, mode: reads.append(key) or Endless.read(self, key, mode))
    summary = predict(checkpoint, source, output, batch_size=2)
    assert reads == [8, 9, 10, 11] and (summary.images, summary.resumed) == (12, 8)
    assert output.read_bytes() == (tmp_path / f'whole.{suffix}').read_bytes() or suffix == 'parquet'
    if suffix == 'parquet':
        assert parquet.read_table(output) == parquet.read_table(tmp_path / 'whole.parquet')
    assert not first.exists() and written


def test_unfinished_parts_of_another_run_are_refused(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(parts, 'ROWS', 4)
    source, output = Interrupted(), tmp_path / 'out.csv'
    source.stop_at = 9
    with pytest.raises(KeyboardInterrupt):
        predict(checkpoint, source, output, batch_size=2)
    with pytest.raises(ValueError, match='another top_k'):
        predict(checkpoint, source, output, top_k=2)
    monkeypatch.setattr(Interrupted, 'entries', lambda self: ((f'x{i}', i) for i in range(12)))
    with pytest.raises(ValueError, match='files were added, removed or renamed'):
        predict(checkpoint, source, output)


def test_an_output_is_not_replaced_unless_asked(checkpoint, photos, tmp_path):
    output = tmp_path / 'out.csv'
    output.write_text('mine')
    with pytest.raises(ValueError, match='exists'):
        predict(checkpoint, photos / '1.png', output)
    assert predict(checkpoint, photos / '1.png', output, overwrite=True).images == 1
    with pytest.raises(ValueError, match='must end in .csv'):
        predict(checkpoint, photos / '1.png', tmp_path / 'out.xlsx')
    (tmp_path / 'empty').mkdir()
    with pytest.raises(ValueError, match='no image to predict'):
        predict(checkpoint, tmp_path / 'empty', tmp_path / 'none.csv')


def test_the_command_writes_a_table_or_the_terminal(photos, tmp_path, capsys):
    assert cli.main(['predict', 'digits', str(photos), '-j', '0', '-k', '2']) == 0
    shown = capsys.readouterr()
    assert '1 without a prediction: inner/bad.jpg' in shown.err
    assert 'left out: 1 files of a type that is no image (.md 1): notes.md' in shown.err
    output = tmp_path / 'out.csv'
    assert cli.main(['predict', 'digits', str(photos), '-j', '0', '-k', '2', '-o', str(output), '--amp']) == 0
    assert len(output.read_text().splitlines()) == len(shown.out.splitlines()) == 7


@pytest.mark.parametrize('argv, message', [
    (['nowhere', 'x.png'], "checkpoint 'nowhere' cannot be read"),
    (['digits', 'nowhere'], 'there is no file, folder or dataset'),
    (['digits', 'timm_lt/digits', '--split', 'third'], 'third'),
    (['digits', __file__, '-k', '0'], 'top_k must be'),
    (['digits', __file__, '--amp-dtype', 'bfloat16'], '--amp-dtype is of --amp'),
    (['digits', __file__, '-o', 'x.txt'], 'must end in .csv'),
])
def test_errors_of_the_command_are_one_sentence(argv, message, capsys):
    assert cli.main(['predict', *argv]) == 2
    text = capsys.readouterr().err
    assert text.startswith('timm-lt predict: error: ') and message in text and text.count('\n') == 1
    assert not Path('x.txt').exists()

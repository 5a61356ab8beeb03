"""Hugging Face sets: labels that are names, empty cells, parts under other names."""

import logging

import pytest
from PIL import Image

from timm_lt.data import create_dataset, drop_unreadable, find_split, found

datasets = pytest.importorskip('datasets')
COLOURS = (0, 10, 20, 30)


@pytest.fixture
def make(tmp_path):
    def write(labels, feature, split='train', images=None):
        (tmp_path / 'set').mkdir(exist_ok=True)
        images = images or [Image.new('RGB', (4, 4), (c,) * 3) for c in COLOURS[:len(labels)]]
        features = datasets.Features(image=datasets.Image(), label=feature)
        rows = {'image': images, 'label': labels}
        datasets.Dataset.from_dict(rows, features=features).to_parquet(
            tmp_path / 'set' / f'{split}-00000-of-00001.parquet')

    def read(split='train', **options):
        return create_dataset(f'hfds/{tmp_path}/set', tmp_path / 'cache', split, **options)

    write.read = read
    return write


def test_labels_that_are_text_are_numbered_in_natural_order(make):
    make(['n10', 'n9', 'n10', 'A'], datasets.Value('string'))
    make(['n9'], datasets.Value('string'), 'validation')
    train = make.read()
    assert train.class_names == ['A', 'n9', 'n10'] and train.targets.tolist() == [2, 1, 2, 0]
    assert train[1][0].getpixel((0, 0))[0] == 10 and train[1][1] == 1
    assert make.read('val', class_names=train.class_names).targets.tolist() == [1]
    with pytest.raises(ValueError, match=r"classes \['n9'\] that the training part lacks"):
        make.read('val', class_names=['A'])


@pytest.mark.parametrize('feature,labels,targets,names', [
    (datasets.Value('bool'), [True, False], [1, 0], ['False', 'True']),
    (datasets.Value('uint16'), [1, 0], [1, 0], None), (datasets.Value('int64'), [0, 1], [0, 1], None),
    (datasets.ClassLabel(names=['y', 'x']), [1, 0], [1, 0], ['y', 'x']),
])
def test_labels_of_other_types(make, feature, labels, targets, names):
    make(labels, feature)
    data = make.read()
    assert data.targets.tolist() == targets and data.class_names == names


@pytest.mark.parametrize('feature,labels', [
    (datasets.ClassLabel(names=['a', 'b']), [0, None, 1, -1]), (datasets.Value('string'), ['a', None, 'b', ' ']),
])
def test_rows_without_a_label_are_named_or_left_out(make, feature, labels, caplog):
    make(labels, feature)
    with pytest.raises(ValueError, match="2 of 4 are rows without a label, e.g. row 1.*bad_images='skip'"):
        make.read()
    data = make.read(bad_images='skip')
    assert data.targets.tolist() == [0, 1] and data[1][0].getpixel((0, 0))[0] == 20
    assert data.found.left_out[found.NO_LABEL].examples == ['row 1', 'row 3']
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize('empty', [0, 1])
def test_empty_image_cell_is_an_unreadable_image(make, empty, caplog):
    images = [Image.new('RGB', (4, 4)) for _ in range(3)]
    images[empty] = None
    make([0, 1, 0], datasets.ClassLabel(names=['a', 'b']), images=images)
    data = make.read()
    with pytest.raises(OSError, match=f"1 of 3 images cannot be read: cannot read row {empty}: its cell .* is empty"):
        drop_unreadable(data)
    assert len(drop_unreadable(data, 'skip')) == 2 and f'row {empty}' in caplog.text


def test_class_map_numbers_names(make):
    make([0, 1, 0], datasets.ClassLabel(names=['a', 'b']))
    data = make.read(class_map=['b', 'a'])
    assert data.class_names == ['b', 'a'] and data.targets.tolist() == [1, 0, 1]


def test_parts_are_found_under_their_own_names(make, tmp_path):
    make([0], datasets.ClassLabel(names=['a']))
    make([0], datasets.ClassLabel(names=['a']), 'validation')
    assert find_split(f'hfds/{tmp_path}/set', None, ('test', 'validation')) == 'validation'
    assert len(make.read('val')) == 1

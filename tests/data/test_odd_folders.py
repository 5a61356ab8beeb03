"""Folders as people have them: no class is invented, merged, split or renumbered, no image vanishes, without a word."""

import logging
import os
import subprocess
import sys

import pytest
from image_files import make_folder, save_image

from timm_lt.data import create_dataset, find_split, found
from timm_lt.data.names import natural_key, sort_names


@pytest.fixture
def pets(tmp_path):
    return make_folder(tmp_path, {'cat': 2, 'dog': 3})


def check_pets(root, **options):
    data = create_dataset('folder', root, **options)
    assert data.class_names == ['cat', 'dog'] and data.targets.tolist() == [0, 0, 1, 1, 1]
    return data


# hidden files and folders, other types, links


@pytest.mark.parametrize('name', [
    '.ipynb_checkpoints/0-checkpoint.png', '.git/a/b.png', '.thumbnails/0.png', '__MACOSX/cat/0.png', '@eaDir/0.jpg',
    'lost+found/0.png', '.hidden.png', '._0.png', 'Thumbs.db', '.DS_Store', 'desktop.ini', '$RECYCLE.BIN/0.png',
])
@pytest.mark.parametrize('where', ['', 'cat', 'cat/day'])
def test_hidden_and_system_entries_are_counted_and_left_out(tmp_path, name, where):
    counts = {'cat/day': 2, 'dog': 3} if where == 'cat/day' else {'cat': 2, 'dog': 3}
    save_image(make_folder(tmp_path, counts) / where / 'x.png')
    (tmp_path / where / 'x.png').rename(tmp_path / 'x')
    target = tmp_path / where / name
    target.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / 'x').rename(target)
    left_out = check_pets(tmp_path).found.left_out
    assert left_out[found.HIDDEN].count == 1
    assert left_out[found.HIDDEN].examples == [os.path.join(where, name.split('/')[0])]


def test_images_of_the_known_types_are_found_in_any_case(pets):
    for i, suffix in enumerate(('JPG', 'jpe', 'jfif', 'TIFF', 'webp', 'avif', 'heic', 'bmp', 'PNG')):
        (pets / 'cat' / f'a{i}.{suffix}').write_bytes(b'')
    data = create_dataset('folder', pets)
    assert data.found.images == 14 and not data.found.left_out


def test_files_of_other_types_are_counted_and_named_with_a_warning(pets, caplog):
    for name in ('cat/x.npy', 'cat/y.npy', 'dog/notes.txt', 'dog/no_type'):
        (pets / name).write_bytes(b'')
    data = check_pets(pets)
    group = data.found.left_out[found.OTHER_TYPES]
    assert group.count == 4 and dict(group.types) == {'.npy': 2, '.txt': 1, 'no type': 1}
    assert caplog.records[-1].levelno == logging.WARNING and '(.npy 2, .txt 1, no type 1)' in caplog.text


def test_files_beside_the_class_folders_need_no_warning(pets, caplog):
    (pets / 'labels.csv').write_text('')
    with caplog.at_level(logging.INFO):
        check_pets(pets)
    assert caplog.records[-1].levelno == logging.INFO and 'labels.csv' in caplog.text


def test_folder_of_other_types_only_names_the_types(tmp_path):
    (tmp_path / 'cat').mkdir()
    (tmp_path / 'cat' / '1.npy').write_bytes(b'')
    with pytest.raises(ValueError, match=r"no images in class folders.*\['.npy'\]"):
        create_dataset('folder', tmp_path)


def test_types_can_be_chosen(pets):
    save_image(pets / 'cat' / '0.bmp')
    assert len(create_dataset('folder', pets)) == 6
    data = check_pets(pets, input_key='.PNG;jpg')
    assert data.found.left_out[found.OTHER_TYPES].examples == ['cat/0.bmp']


def test_links_are_followed_but_not_back(pets, tmp_path_factory):
    elsewhere = make_folder(tmp_path_factory.mktemp('elsewhere'), {'one': 2})
    (pets / 'owl').symlink_to(elsewhere / 'one')
    (pets / 'dog' / 'up').symlink_to(pets)
    (elsewhere / 'one' / 'again').symlink_to(elsewhere / 'one')
    (pets / 'cat' / 'gone.png').symlink_to(pets / 'nothing.png')
    data = create_dataset('folder', pets)
    assert data.class_names == ['cat', 'dog', 'owl'] and data.targets.bincount().tolist() == [3, 3, 2]
    assert sorted(data.found.left_out[found.LINKS_BACK].examples) == ['dog/up', 'owl/again']


def test_links_between_two_folders_end(tmp_path):
    make_folder(tmp_path, {'a': 1, 'b': 1})
    (tmp_path / 'a' / 'to_b').symlink_to(tmp_path / 'b')
    (tmp_path / 'b' / 'to_a').symlink_to(tmp_path / 'a')
    assert create_dataset('folder', tmp_path).targets.tolist() == [0, 0, 1, 1]  # each also sees the other, once


def test_pipes_are_not_opened(pets):
    os.mkfifo(pets / 'cat' / 'pipe.png')
    assert check_pets(pets).found.left_out[found.SPECIAL].count == 1


def test_folder_that_cannot_be_opened_is_an_error_or_left_out(pets, monkeypatch):
    (pets / 'dog' / 'closed').mkdir()
    scandir = os.scandir

    def refuse(path):
        if str(path).endswith('closed'):
            raise PermissionError(13, 'Permission denied', str(path))
        return scandir(path)

    monkeypatch.setattr(os, 'scandir', refuse)
    with pytest.raises(PermissionError, match='dog/closed'):
        create_dataset('folder', pets)
    assert check_pets(pets, bad_images='skip').found.left_out[found.CLOSED].examples == ['dog/closed/']


# nested folders


def test_nested_folders_belong_to_the_first_level(tmp_path, caplog):
    make_folder(tmp_path, {'cat/day': 1, 'cat/night/late': 1, 'dog/day': 2, 'dog': 1})
    check_pets(tmp_path)
    assert '3 folders inside class folders, e.g. cat/day, belong to the class of the first' in caplog.text


def test_parts_inside_class_folders_are_refused(tmp_path):
    make_folder(tmp_path, {'cat/train': 1, 'cat/test': 1, 'dog/train': 1})
    with pytest.raises(ValueError, match=r"parts \['test', 'train'\] inside \['"):
        create_dataset('folder', tmp_path)


def test_parts_one_folder_deeper_are_named(tmp_path):
    make_folder(tmp_path, {'archive/train/cat': 1, 'archive/test/cat': 1})
    with pytest.raises(ValueError, match='one folder deeper, name that folder, e.g. .*archive'):
        create_dataset('folder', tmp_path)


def test_one_class_of_nested_folders_is_pointed_out(tmp_path, caplog):
    make_folder(tmp_path, {'images/cat': 1, 'images/dog': 1})
    assert create_dataset('folder', tmp_path).class_names == ['images']
    assert "all images belong to the one class 'images'" in caplog.text


# parts


@pytest.mark.parametrize('train,test', [
    ('Training', 'Validation'), ('TRAIN', 'Test'), ('train', 'valid'), ('training_set', 'test_set'),
    ('Train', 'evaluation'),
])
def test_parts_are_recognised_in_any_case_and_usual_name(tmp_path, train, test):
    make_folder(tmp_path, {f'{train}/cat': 2, f'{train}/dog': 3, f'{test}/cat': 1, f'{test}/dog': 1})
    check_pets(tmp_path)
    own = find_split('folder', tmp_path, ('test', 'validation'))
    assert own == test
    assert len(create_dataset('folder', tmp_path, own, class_names=['cat', 'dog'])) == 2


@pytest.mark.parametrize('names', [('bus', 'car', 'train'), ('bus', 'test'), ('Val', 'bus'), ('bus', 'test', 'train')])
def test_class_with_the_name_of_a_part_is_a_class(tmp_path, names):
    make_folder(tmp_path, {name: 2 for name in names})
    assert create_dataset('folder', tmp_path).class_names == sorted(names, key=str.lower)
    assert find_split('folder', tmp_path, ('test', 'validation')) is None


def test_nested_class_with_the_name_of_a_part_is_refused_beside_other_classes(tmp_path):
    make_folder(tmp_path, {'bus/day': 2, 'car/day': 2, 'train/day': 2})
    with pytest.raises(ValueError, match=r"part 'train' beside folders with images \['bus', 'car'\]"):
        create_dataset('folder', tmp_path)


def test_flat_parts_without_class_folders_are_refused(tmp_path):
    make_folder(tmp_path, {'train': 2, 'test': 2})
    with pytest.raises(ValueError, match=r"parts \['test', 'train'\] but no class folders.*list/FILE"):
        create_dataset('folder', tmp_path)


def test_folders_beside_the_parts_are_named(tmp_path):
    make_folder(tmp_path, {'train/cat': 2, 'train/dog': 3, 'test/cat': 1, 'Training/cat': 1, 'extra': 2})
    (tmp_path / 'notes').mkdir()
    group = check_pets(tmp_path).found.left_out[found.BESIDE_PARTS]
    assert group.examples == ['extra', 'Training']


def test_any_other_folder_can_be_named_as_the_part(tmp_path):
    make_folder(tmp_path, {'clean/cat': 2, 'clean/dog': 3, 'noisy/cat': 1})
    check_pets(tmp_path, split='clean')


# classes that do not fit


@pytest.mark.parametrize('make,reason,match', [
    (lambda root: (root / 'owl').mkdir(), found.EMPTY_CLASSES, 'owl'),
    (lambda root: save_image(root / 'loose.png'), found.LOOSE, 'loose.png'),
])
def test_entries_that_do_not_fit_are_errors_or_left_out_on_request(pets, make, reason, match, caplog):
    make(pets)
    with pytest.raises(ValueError, match=match + ".*bad_images='skip'"):
        create_dataset('folder', pets)
    assert check_pets(pets, bad_images='skip').found.left_out[reason].examples == [match]
    assert caplog.records[-1].levelno == logging.WARNING and match in caplog.text


# numbering


def test_names_that_tie_in_natural_order_are_numbered_alike_in_every_process(tmp_path):
    names = ['1', '01', '001', '2', '10', 'a', 'A', 'Ab', 'aB']
    make_folder(tmp_path, {name: 1 for name in names})
    code = (f'import sys; sys.path[:0] = {sys.path!r}\nfrom timm_lt.data.names import sort_names\n'
            f'print(sort_names({names!r}))')
    orders = {
        subprocess.run([sys.executable, '-c', code], capture_output=True, text=True, check=True,
                       env={**os.environ, 'PYTHONHASHSEED': str(seed)}).stdout.strip() for seed in (1, 2)}
    assert orders == {str(create_dataset('folder', tmp_path).class_names)}
    assert orders == {"['001', '01', '1', '2', '10', 'A', 'a', 'Ab', 'aB']"}


def test_order_is_that_of_timm_where_that_is_total(tmp_path):
    from timm.data.readers.reader_image_folder import ReaderImageFolder
    names = ['n10', 'n9', 'B', 'a', 'a b', 'a-1', '3', '20', 'z(1)', 'Ä', '_x']
    for name in names:
        for file in ('10.png', '9.png', 'x.jpg', 'X1.png', 'x 2.png'):
            (tmp_path / name).mkdir(exist_ok=True)
            (tmp_path / name / file).write_bytes(b'')
    reference, data = ReaderImageFolder(str(tmp_path)), create_dataset('folder', tmp_path)
    assert data.class_names == list(reference.class_to_idx)
    assert [(data.filename(i, absolute=True), t) for i, t in enumerate(data.targets.tolist())] == reference.samples


def test_natural_order_takes_any_name():
    assert sort_names(['²', '1²', 'x٣', 'x', '']) == ['', '1²', 'x', 'x٣', '²']
    assert natural_key('7') == ['', 7, '', -1, '7']


def test_names_that_are_not_utf8_are_shown_in_a_printable_form(tmp_path):
    make_folder(tmp_path, {'train/cat': 1, 'train/x': 2, 'val/x': 1})
    for part in ('train', 'val'):
        folder = os.fsencode(tmp_path / part)
        os.rename(folder + b'/x', folder + b'/Gr\xf6\xdfe')
    train = create_dataset('folder', tmp_path)
    assert train.class_names == ['cat', r'Gr\xf6\xdfe'] and 'UTF-8' in train.found.notes[0]
    val = create_dataset('folder', tmp_path, 'val', class_names=train.class_names)
    assert val.targets.tolist() == [1] and val[0][0].size == (8, 8)
    ''.join(str(train.found)).encode('utf-8')
    (tmp_path / 'train' / r'Gr\xf6\xdfe').mkdir()
    save_image(tmp_path / 'train' / r'Gr\xf6\xdfe' / '1.png')
    with pytest.raises(ValueError, match='look alike'):
        create_dataset('folder', tmp_path)


@pytest.mark.parametrize('name', ['$x_1$', '#', 'a,b', "it's", 'ни', '%s', '{split}', 'con', '-'])
def test_any_name_of_a_class_is_kept(tmp_path, name):
    make_folder(tmp_path, {name: 1, 'b': 1})
    assert sorted(create_dataset('folder', tmp_path).class_names) == sorted([name, 'b'])


def test_class_map_numbers_folders(pets, tmp_path_factory):
    file = tmp_path_factory.mktemp('maps') / 'map.json'
    file.write_text('{"dog": 0, "cat": 1}')
    for class_map in (['dog', 'cat'], {'dog': 0, 'cat': 1}, file, str(file)):
        data = create_dataset('folder', pets, class_map=class_map)
        assert data.class_names == ['dog', 'cat'] and data.targets.tolist() == [1, 1, 0, 0, 0]
    merged = create_dataset('folder', pets, class_map={'dog': 0, 'cat': 0})
    assert merged.class_names == ['dog / cat'] and merged.targets.tolist() == [0] * 5
    with pytest.raises(ValueError, match=r"\['dog'\] that the class map lacks"):
        create_dataset('folder', pets, class_map=['cat'])
    some = create_dataset('folder', pets, class_map=['cat'], bad_images='skip')
    assert len(some) == 2 and some.found.left_out[found.NOT_IN_MAP].examples == ['dog']


@pytest.mark.parametrize('class_map,match', [
    ({'cat': 0, 'dog': 2}, '0 to C - 1'), ({'cat': '0', 'dog': 1}, '0 to C - 1'), (['cat', 'cat'], 'different'),
    ('none.txt', 'no class map'),
])
def test_class_map_without_sense_is_refused(pets, class_map, match):
    with pytest.raises((ValueError, FileNotFoundError), match=match):
        create_dataset('folder', pets, class_map=class_map)


# the record


def test_summary_counts_images_and_classes(pets, caplog):
    with caplog.at_level(logging.INFO):
        data = check_pets(pets)
    assert (data.found.images, data.found.classes, data.found.smallest, data.found.largest) == (5, 2, 2, 3)
    assert caplog.messages == [f'train: 5 images of 2 classes (2 to 3 a class) in {pets}']

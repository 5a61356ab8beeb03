import json

import numpy as np
import pytest
import timm
import torch
from image_files import make_folder, save_image
from PIL import Image
from torch.utils.data import ConcatDataset, IterableDataset, Subset
from torchvision.datasets import FakeData, ImageFolder

import timm_lt
from timm_lt.data import (
    Digits,
    ImageReadError,
    ListFileDataset,
    create_dataset,
    drop_unreadable,
    find_split,
    find_unreadable,
    get_class_names,
    get_targets,
    read_sample,
)


@pytest.fixture
def folder(tmp_path):
    make_folder(tmp_path / 'train', {'ant': 4, 'bee': 2, 'cat': 1})
    make_folder(tmp_path / 'val', {'ant': 1, 'cat': 2})  # no bee: timm alone would give cat the label 1
    return tmp_path


@pytest.fixture
def no_decoding(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError('an image was opened')
    monkeypatch.setattr(Image, 'open', refuse)


# labels


def test_targets_of_a_timm_folder_are_read_without_decoding(folder, no_decoding):
    dataset = timm.data.create_dataset('', root=str(folder), split='train')
    assert get_targets(dataset).tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert get_class_names(dataset) == ['ant', 'bee', 'cat']


def test_targets_of_a_torchvision_folder_are_read_without_decoding(folder, no_decoding):
    dataset = ImageFolder(folder / 'train')
    assert get_targets(dataset).tolist() == [0, 0, 0, 0, 1, 1, 2]
    assert get_class_names(dataset) == ['ant', 'bee', 'cat']


def test_targets_of_a_hugging_face_dataset_are_read_without_decoding(tmp_path, no_decoding):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['x', 'y']))
    rows = {'image': [{'bytes': b'no image', 'path': None}] * 5, 'label': [1, 0, 0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / 'data' / 'train.parquet')
    dataset = timm.data.create_dataset(f'hfds/{tmp_path}/data', root=str(tmp_path / 'cache'), split='train')
    assert get_targets(dataset).tolist() == [1, 0, 0, 1, 1]
    assert get_class_names(dataset) == ['x', 'y']
    assert timm_lt.ClassDistribution.from_dataset(dataset).counts.tolist() == [2, 3]


def test_targets_follow_subsets_concatenations_and_target_transforms(folder):
    dataset = ImageFolder(folder / 'train')
    assert get_targets(Subset(dataset, [6, 0])).tolist() == [2, 0]
    assert get_targets(ConcatDataset([dataset, Subset(dataset, [4])])).tolist() == [0, 0, 0, 0, 1, 1, 2, 1]
    dataset.target_transform = lambda t: 2 - t
    assert get_targets(dataset).tolist() == [2, 2, 2, 2, 1, 1, 0]
    assert [dataset[i][1] for i in range(7)] == get_targets(dataset).tolist()


def test_targets_that_need_images_are_refused():
    with pytest.raises(TypeError, match='attribute `targets`'):
        get_targets(FakeData(3))


def test_streaming_dataset_is_refused():
    class Stream(IterableDataset):
        def __iter__(self):
            return iter(())

    with pytest.raises(TypeError, match='map-style'):
        get_targets(Stream())


@pytest.mark.parametrize('targets,match', [
    ([], 'Labelled has no images'),
    ([0, None, 1], '1 of 3 images have no label'), ([0.0, 1.0], 'whole number'), (['a', 'b'], 'whole number'),
])
def test_labels_must_be_whole_numbers(targets, match):
    class Labelled:
        def __len__(self):
            return len(self.targets)

    dataset = Labelled()
    dataset.targets = targets
    with pytest.raises(ValueError, match=match):
        get_targets(dataset)


# digits


def test_digits_are_a_fixed_stratified_split_of_rgb_images():
    train, test = Digits('train'), create_dataset('timm_lt/digits', split='test')
    assert (len(train), len(test)) == (1438, 359)
    assert torch.bincount(test.targets).tolist() == [36, 36, 35, 37, 36, 36, 36, 36, 35, 36]
    image, label = train[0]
    assert image.size == (32, 32) and image.mode == 'RGB' and label == train.targets[0]
    assert int(np.asarray(image).astype(int).sum()) > 0
    assert [t for t in Digits('test').targets] == test.targets.tolist()
    pixels = {np.asarray(i).tobytes() for i in train.images}
    assert not pixels & {np.asarray(i).tobytes() for i in Digits('test').images}


def test_digits_know_their_splits():
    assert find_split('timm_lt/digits', None, ('test', 'validation')) == 'test'
    with pytest.raises(ValueError, match='split must be one of'):
        create_dataset('timm_lt/digits', split='extra')


# lists


@pytest.fixture
def image_root(tmp_path):
    for i in range(3):
        save_image(tmp_path / 'images' / 'a b' / f'{i}.png', 10 * i)
    return tmp_path / 'images'


def test_list_file_names_images_and_labels(tmp_path, image_root):
    (tmp_path / 'train.txt').write_text('a b/0.png 1\n\na b/2.png 0\r\n')
    dataset = ListFileDataset(tmp_path / 'train.txt', image_root)
    assert len(dataset) == 2 and dataset.targets == [1, 0]
    assert dataset[1][0].getpixel((0, 0)) == (20, 20, 20) and dataset[1][1] == 0
    assert dataset.filename(0) == 'a b/0.png' and dataset.filename(0, absolute=True) == str(image_root / 'a b/0.png')
    named = create_dataset(f'list/{tmp_path}/{{split}}.txt', image_root, 'train')
    assert named.targets.tolist() == [1, 0]
    (image_root / 'val.txt').write_text('a b/1.png 1\n')
    assert find_split('list/{split}.txt', image_root, ('test', 'validation')) == 'val'
    assert len(create_dataset('list/{split}.txt', image_root, 'validation')) == 1


@pytest.mark.parametrize('text,match', [
    ('a b/0.png 1\nimage.png\n', r'line 2: expected `relative/path label`'),
    ('a b/0.png one\n', r"line 1: the label must be a whole number >= 0, got 'one'"),
    ('a b/0.png -1\n', r"line 1: the label must be a whole number >= 0, got '-1'"),
    ('\n', 'names no image'),
])
def test_bad_list_file_is_refused_with_its_line(tmp_path, image_root, text, match):
    (tmp_path / 'list.txt').write_text(text)
    with pytest.raises(ValueError, match=match):
        ListFileDataset(tmp_path / 'list.txt', image_root)


def test_missing_list_or_image_root_is_named(tmp_path, image_root):
    with pytest.raises(FileNotFoundError, match='no list file .*none.txt'):
        create_dataset('list/none.txt', image_root)
    (tmp_path / 'list.txt').write_text('x.png 0\n')
    with pytest.raises(FileNotFoundError, match='no image folder .*elsewhere'):
        create_dataset(f'list/{tmp_path}/list.txt', tmp_path / 'elsewhere')
    with pytest.raises(ValueError, match='root'):
        create_dataset('list/none.txt')


def test_list_with_a_missing_image_names_its_path(tmp_path, image_root):
    (tmp_path / 'list.txt').write_text('gone.png 0\n')
    dataset = create_dataset(f'list/{tmp_path}/list.txt', image_root)
    with pytest.raises(ImageReadError, match='gone.png'):
        dataset[0]


# folders


def test_folder_parts_share_the_labels_of_the_training_part(folder):
    train = create_dataset('', folder, 'train')
    split = find_split('', folder, ('test', 'validation'))
    val = create_dataset('', folder, split, class_names=train.class_names)
    assert split == 'val' and train.class_names == val.class_names == ['ant', 'bee', 'cat']
    assert val.targets.tolist() == [0, 2, 2]


def test_folder_with_another_class_is_refused(folder):
    save_image(folder / 'val' / 'dog' / '0.png')
    train = create_dataset('', folder, 'train')
    with pytest.raises(ValueError, match=r"\['dog'\] that the training part lacks"):
        create_dataset('', folder, 'val', class_names=train.class_names)


def test_folder_without_parts_is_training_only(folder):
    assert len(create_dataset('folder', folder / 'train', 'train')) == 7
    assert find_split('', folder / 'train', ('test', 'validation')) is None
    with pytest.raises(ValueError, match='split_validation'):
        create_dataset('', folder / 'train', 'validation')


def test_missing_part_of_a_folder_is_an_error_not_the_whole_folder(folder):
    with pytest.raises(ValueError, match=r"no part 'test', only \['train', 'val'\]"):
        create_dataset('', folder, 'test')


def test_empty_or_missing_folder_is_refused(tmp_path):
    (tmp_path / 'empty' / 'cat').mkdir(parents=True)
    with pytest.raises(ValueError, match='no images in class folders'):
        create_dataset('', tmp_path / 'empty')
    with pytest.raises(FileNotFoundError, match='no image folder'):
        create_dataset('', tmp_path / 'none')
    save_image(tmp_path / 'loose' / '1.png')
    with pytest.raises(ValueError, match='outside a class folder'):
        create_dataset('', tmp_path / 'loose')


@pytest.mark.parametrize('name', ['imagefolder', 'image_folder', 'torch/image_folder'])
def test_other_names_of_a_folder_mean_the_folder(folder, name):
    assert find_split(name, folder, ('test', 'validation')) == 'val'
    assert find_split(name, folder / 'train', ('test', 'validation')) is None
    with pytest.raises(ValueError, match='split_validation'):  # not the training images once more
        create_dataset(name, folder / 'train', 'validation')


def test_streaming_and_unknown_names_are_refused(folder):
    with pytest.raises(ValueError, match='torch/nothing'):
        create_dataset('torch/nothing', folder)
    for call in (create_dataset, lambda name, root: find_split(name, root, ('test',))):
        with pytest.raises(ValueError, match="unknown dataset 'tourch/cifar10'. Did you mean 'torch/cifar10'"):
            call('tourch/cifar10', folder)
        with pytest.raises(ValueError, match="unknown dataset 'pictures'"):
            call('pictures', folder)
    with pytest.raises(TypeError, match='streams'):
        create_dataset('wds/pictures', folder)


def test_class_folder_without_an_image_is_refused_in_the_training_part_only(folder):
    (folder / 'train' / 'dog').mkdir()
    (folder / 'train' / '.cache').mkdir()
    (folder / 'val' / 'bee').mkdir()
    with pytest.raises(ValueError, match=r"train has class folders without an image: \['dog'\]"):
        create_dataset('', folder, 'train')
    assert len(create_dataset('', folder, 'val', class_names=['ant', 'bee', 'cat'])) == 3
    save_image(folder / 'train' / 'dog' / 'small' / '1.png')  # images may lie deeper
    assert create_dataset('', folder, 'train').class_names == ['ant', 'bee', 'cat', 'dog']


@pytest.mark.parametrize('option', ['input_key', 'target_key'])
def test_column_that_a_hugging_face_dataset_lacks_is_named_with_those_that_it_has(tmp_path, option):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['x', 'y']))
    rows = {'image': [{'bytes': b'no image', 'path': None}] * 2, 'label': [1, 0]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / 'data' / 'train.parquet')
    with pytest.raises(ValueError, match=r"no column 'img', only \['image', 'label'\].*--target-key"):
        create_dataset(f'hfds/{tmp_path}/data', str(tmp_path / 'cache'), **{option: 'img'})


# unreadable images


@pytest.fixture
def damaged(folder):
    (folder / 'train' / 'ant' / '1.png').write_bytes(b'not an image')
    whole = (folder / 'train' / 'bee' / '0.png').read_bytes()
    (folder / 'train' / 'bee' / '0.png').write_bytes(whole[:len(whole) // 2])
    return folder


def test_unreadable_image_is_named_and_never_replaced(damaged):
    timm_dataset = timm.data.create_dataset('', root=str(damaged), split='train')
    with pytest.raises(ImageReadError, match=r'ant/1\.png'):
        read_sample(timm_dataset, 1)
    dataset = create_dataset('', damaged, 'train')
    with pytest.raises(ImageReadError, match=r'bee/0\.png'):
        dataset[4]
    assert dataset[2][1] == 0


@pytest.mark.parametrize('workers', [0, 1])
def test_unreadable_images_are_counted(damaged, workers):
    dataset = create_dataset('', damaged, 'train')
    dataset.transform = lambda image: 1 / 0  # the check is about files, not about the transform
    assert sorted(find_unreadable(dataset, workers)) == [1, 4]
    assert dataset.transform is not None
    message = r"2 of 7 images cannot be read: .*ant/1\.png.*bee/0\.png.*bad_images='skip' \(--bad-images skip\)"
    with pytest.raises(ImageReadError, match=message):
        drop_unreadable(dataset, 'error', workers)


def test_unreadable_images_are_left_out_on_request(damaged, caplog):
    dataset = drop_unreadable(create_dataset('', damaged, 'train'), 'skip')
    assert len(dataset) == 5 and dataset.targets.tolist() == [0, 0, 0, 1, 2]
    assert '2 of 7 images' in caplog.text and 'left out' in caplog.text
    assert [dataset[i][1] for i in range(5)] == dataset.targets.tolist()


def test_readable_dataset_is_returned_as_it_is(folder):
    dataset = create_dataset('', folder, 'train')
    assert drop_unreadable(dataset) is dataset


def test_folder_distribution_writes_class_stats_that_timm_reads(folder, tmp_path):
    timm_lt.ClassDistribution.from_dataset(create_dataset('', folder, 'train')).to_json(tmp_path / 'stats.json')
    assert json.loads((tmp_path / 'stats.json').read_text())['pos_counts'] == [4, 2, 1]

"""The registry of dataset readers: a reader is one class and one line."""

import pytest
from image_files import make_folder, save_image
from PIL import Image
from torch.utils.data import Dataset

from timm_lt._registry import READERS, register_reader
from timm_lt.data import create_dataset, find_split, numbers_its_own_classes
from timm_lt.data.factory import create_reader
from timm_lt.data.readers import DatasetReader


class Stripes(Dataset):
    targets, class_names, transform = [0, 1], ['thin', 'wide'], None

    def __len__(self):
        return 2

    def __getitem__(self, index):
        return Image.new('L', (4, 4)), self.targets[index]


@pytest.fixture
def stripes():
    @register_reader('stripes')
    class StripesReader(DatasetReader):
        def __init__(self, name, root=None, *, bad_images='error', period=1):
            super().__init__(name, root, bad_images=bad_images)

        def splits(self):
            return ['Train', 'dev']

        def read(self, split, class_names=None):
            return Stripes()

    yield
    del READERS._infos['stripes']


def test_a_new_reader_is_one_class_and_one_line(stripes, caplog):
    with caplog.at_level('INFO'):
        data = create_dataset('stripes/any', period=2)
    assert data.class_names == ['thin', 'wide'] and data.found.images == 2
    assert caplog.messages == ['train: 2 images of 2 classes (1 a class) in stripes/any']
    assert find_split('stripes/any', None, ('test', 'train')) == 'Train'
    assert not numbers_its_own_classes('stripes/any')
    with pytest.raises(TypeError, match="dataset 'stripes' has no option 'perod'"):
        create_dataset('stripes/any', perod=2)


@pytest.mark.parametrize('name,own', [
    ('', True), ('folder', True), ('ImageFolder', True), ('torch/folder', True), ('list/x.txt', True),
    ('torch/cifar10', False), ('hfds/x', False), ('timm_lt/digits', False),
])
def test_readers_say_whether_parts_number_their_classes(name, own):
    assert numbers_its_own_classes(name) is own


def test_every_reader_has_an_example_that_names_it():
    for info in READERS.infos():
        assert all(e.split('/')[0] in (info.name, 'imagefolder') for e in info.factory.examples), info.name


@pytest.mark.parametrize('name', ['timm_lt/digits', 'torch/cifar10'])
@pytest.mark.parametrize('one,two,shared', [
    ('train', 'test', False), ('train', 'Training', True), ('val', 'test', True), ('train', 'validation', False),
])
def test_sets_of_two_parts_know_which_names_share_images(name, one, two, shared):
    assert create_reader(name).shares_images((one, None), (two, None)) is shared


def test_files_know_which_parts_share_images(tmp_path):
    make_folder(tmp_path, {'train/a': 2, 'val/a': 1})
    reader = create_reader('folder', tmp_path)
    train, val = (('x', reader.read(part)) for part in ('train', 'val'))
    assert not reader.shares_images(train, val) and reader.shares_images(train, train)
    (tmp_path / 'val' / 'a' / 'link.png').symlink_to(tmp_path / 'train' / 'a' / '0.png')
    assert reader.shares_images(train, ('val', reader.read('val')))


def test_labels_of_torchvision_are_fixed():
    with pytest.raises(TypeError, match='already has labels'):
        create_dataset('torch/cifar10', class_map=['a'])


def test_options_of_other_readers_are_refused(tmp_path):
    save_image(tmp_path / 'a' / '0.png')
    with pytest.raises(TypeError, match="dataset 'folder' has no option 'target_key'"):
        create_dataset('folder', tmp_path, target_key='label')

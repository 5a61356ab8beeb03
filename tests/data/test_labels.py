"""Labels are those that ``dataset[i]`` gives, of any whole-number type, on the CPU whatever the default device is."""

import numpy as np
import pytest
import torch
from image_files import make_folder
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder

from timm_lt.data import (
    Augmentation,
    ImageSubset,
    create_dataset,
    create_eval_loader,
    create_train_loader,
    eval_transform,
    get_targets,
    keep_in_memory,
    long_tailed_subset,
    split_validation,
)


class Labelled(Dataset):
    transform = None

    def __init__(self, targets):
        self.targets = targets

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        image = Image.new('RGB', (8, 8))
        return image if self.transform is None else self.transform(image), int(self.targets[index])


INTEGERS = ('uint8', 'uint16', 'uint32', 'uint64', 'int8', 'int16', 'int32', 'int64')


@pytest.mark.parametrize('kind', INTEGERS)
@pytest.mark.parametrize('form', ['array', 'tensor', 'list', 'tensors', 'big-endian'])
def test_labels_of_any_whole_number_type_are_read(kind, form):
    labels = np.array([0, 1, 1, 2], kind)
    labels = {
        'array': labels, 'list': list(labels), 'big-endian': labels.astype(labels.dtype.newbyteorder('>')),
        'tensor': torch.from_numpy(labels), 'tensors': list(torch.from_numpy(labels)),
    }[form]
    data = Labelled(labels)
    assert get_targets(data).tolist() == [0, 1, 1, 2] and get_targets(data).dtype == torch.int64
    assert [len(part) for part in split_validation(data, 0.5)] == [3, 1]


def test_labels_of_mixed_whole_number_types_are_read():
    assert get_targets(Labelled([np.uint64(1), np.int8(0), 2, torch.tensor(1)])).tolist() == [1, 0, 2, 1]


def test_labels_of_pandas_are_read_by_place():
    pandas = pytest.importorskip('pandas')
    assert get_targets(Labelled(pandas.Series([2, 0, 1], index=[5, 3, 4]))).tolist() == [2, 0, 1]


def test_labels_beyond_64_bits_with_sign_are_refused():
    with pytest.raises(ValueError, match='below 2'):
        get_targets(Labelled(np.array([2 ** 63], np.uint64)))


# wrappers


class Renumbered(Dataset):
    def __init__(self, dataset, change):
        self.dataset, self.change = dataset, change

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image, self.change(index, label)


class RenumberedSubset(Subset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label + 1

    def __getitems__(self, indices):
        return [self[i] for i in indices]


class RenumberedConcat(ConcatDataset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label + 1


class EvenOrOdd(ImageFolder):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, label % 2


@pytest.mark.parametrize('make', [
    lambda root: Renumbered(ImageFolder(root), lambda i, label: 2 - label),
    lambda root: Renumbered(ImageFolder(root), lambda i, label: torch.tensor(label % 2)),
    lambda root: Renumbered(ImageFolder(root), lambda i, label: 0 if i == 5 else label),
    lambda root: RenumberedSubset(ImageFolder(root), [6, 0, 4]),
    lambda root: RenumberedConcat([ImageFolder(root), ImageFolder(root)]),
    lambda root: EvenOrOdd(root),
    lambda root: Subset(EvenOrOdd(root), [6, 4]),
    lambda root: ConcatDataset([EvenOrOdd(root), ImageFolder(root)]),
    lambda root: Renumbered(Renumbered(ImageFolder(root), lambda i, label: label % 2), lambda i, label: label + 1),
])
def test_labels_are_those_that_the_samples_have(tmp_path, make, caplog):
    data = make(make_folder(tmp_path, {'a': 4, 'b': 2, 'c': 1}))
    given = [int(data[i][1]) for i in range(len(data))]
    assert get_targets(data).tolist() == given
    assert 'all' in caplog.text and 'are read for their labels' in caplog.text
    subset = ImageSubset(data, [1, 0])
    assert subset.targets.tolist() == [given[1], given[0]] == [subset[i][1] for i in range(2)]


def test_wrapper_that_changes_images_only_is_probed_and_leaves_random_numbers_alone(tmp_path, caplog):
    data = Renumbered(ImageFolder(make_folder(tmp_path, {'a': 90, 'b': 30})), lambda i, label: label)
    data.change = lambda i, label: (torch.rand(1), np.random.rand(), label)[2]
    states = torch.get_rng_state(), np.random.get_state()[1]
    assert get_targets(data).tolist() == [0] * 90 + [1] * 30 and not caplog.text
    assert torch.equal(torch.get_rng_state(), states[0]) and (np.random.get_state()[1] == states[1]).all()


def test_wrapper_that_says_its_labels_is_believed(tmp_path):
    data = Renumbered(ImageFolder(make_folder(tmp_path, {'a': 2})), None)
    data.targets = [3, 4]
    assert get_targets(data).tolist() == [3, 4]


# default device


@pytest.fixture
def meta():
    torch.set_default_device('meta')  # in place of 'cuda': a tensor made without a device lands there
    yield
    torch.set_default_device('cpu')


def test_reading_and_dividing_work_whatever_the_default_device_is(tmp_path, meta):
    data = create_dataset('folder', make_folder(tmp_path, {'a': 8, 'b': 8, 'c': 8}))
    tailed = long_tailed_subset(data, 4)
    assert tailed.targets.bincount().tolist() == [8, 4, 2] and tailed.targets.device.type == 'cpu'
    train, val = split_validation(tailed, 0.25)
    assert (len(train), len(val)) == (10, 4)
    assert keep_in_memory(train).images.device.type == 'cpu'


@pytest.mark.parametrize('workers', [None, 0, 1])
def test_loaders_work_whatever_the_default_device_is(tmp_path, workers):
    data = create_dataset('folder', make_folder(tmp_path, {'a': 4, 'b': 4}))
    data = keep_in_memory(data) if workers is None else data
    augmentation = Augmentation((3, 8, 8), (0.5,) * 3, (0.5,) * 3, cutout=2, reprob=0.5)

    def batches():
        train = create_train_loader(data, range(8), augmentation, 4, workers=workers or 0)
        test = create_eval_loader(
            data, (0.5,) * 3, (0.5,) * 3, 4, transform=eval_transform((3, 8, 8)), workers=workers or 0)
        return [tensor for loader in (train, test) for batch in loader for tensor in batch]

    expected = batches()
    torch.set_default_device('meta')
    try:
        seen = batches()
    finally:
        torch.set_default_device('cpu')
    assert all(torch.equal(a, b) for a, b in zip(seen, expected, strict=True))

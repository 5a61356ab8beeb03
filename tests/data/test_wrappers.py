"""Labels are those that the items of a dataset have, whatever wraps it."""

import random

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder

import timm_lt
from timm_lt.data import ImageSubset, get_class_names, get_targets

LABELS = [0] * 6 + [1] * 4 + [2] * 2


class Images(Dataset):
    """A user's dataset, which draws random numbers where it reads an item."""

    def __init__(self, targets=LABELS, transform=None):
        self.targets, self.transform, self.read = list(targets), transform, 0

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, index):
        self.read += 1
        random.random(), np.random.rand(), torch.rand(1)
        return torch.zeros(3, 2, 2), self.targets[index]


class Wrapper(Dataset):
    def __init__(self, dataset, label=lambda y: y, **attributes):
        self.dataset, self.label = dataset, label
        self.__dict__.update(attributes)

    def __len__(self):
        return len(self.dataset)

    def __getitem__(self, index):
        image, label = self.dataset[index]
        return image, self.label(label)


class Proxy(Wrapper):
    """A wrapper that answers for what it wraps."""

    def __getattr__(self, name):
        if name.startswith('__'):  # asked for by copies, before there is a dataset
            raise AttributeError(name)
        return getattr(self.dataset, name)


class ReversedSubset(Subset):
    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image, 2 - label

    def __getitems__(self, indices):
        return [self[i] for i in indices]


def labels_of_items(dataset):
    return [int(dataset[i][1]) for i in range(len(dataset))]


@pytest.fixture
def folder(tmp_path):
    for name, count in (('ant', 4), ('bee', 2), ('cat', 1)):
        (tmp_path / name).mkdir()
        for i in range(count):
            Image.new('RGB', (4, 4)).save(tmp_path / name / f'{i}.png')
    return tmp_path


RIGHT = {
    'own dataset': lambda: Images(),
    'uint16 labels': lambda: Images(np.array(LABELS, dtype=np.uint16)),
    'wrapper of images': lambda: Wrapper(Images()),
    'proxy of images': lambda: Proxy(Images()),
    'wrapper with its own labels': lambda: Wrapper(Images(), lambda y: 2 - y, targets=[2 - y for y in LABELS]),
    'subset': lambda: Subset(Images(), [11, 0, 7]),
    'subset of a subset': lambda: Subset(Subset(Images(), range(11, 0, -1)), [0, 5, 9]),
    'subset by an array': lambda: Subset(Images(), np.array([11, 0, 7], dtype=np.uint16)),
    'subset by a tensor': lambda: Subset(Images(), torch.tensor([11, 0, 7], dtype=torch.int32)),
    'subset from the end': lambda: Subset(Images(), [-1, 0, -4]),
    'concatenation': lambda: ConcatDataset([Images(), Subset(Images(), [3]), Wrapper(Images())]),
    'subset of a wrapper': lambda: Subset(Wrapper(Images(), lambda y: 2 - y, targets=[2 - y for y in LABELS]), [0, 11]),
    'relabelled subset': lambda: labelled(ReversedSubset(Images(), [0, 6, 11]), [2, 1, 0]),
    'image subset of a relabelled one': lambda: ImageSubset(labelled(ReversedSubset(Images(), [0, 11]), [2, 0]), [1]),
    'long-tailed subset': lambda: timm_lt.long_tailed_subset(Wrapper(Images()), 2),
}
RELABELLED = {
    'wrapper that renumbers': lambda: Wrapper(Images(), lambda y: 2 - y),
    'proxy that renumbers': lambda: Proxy(Images(), lambda y: 2 - y),
    'wrapper that copies labels': lambda: Wrapper(Images(), lambda y: 2 - y, targets=LABELS),
    'wrapper that merges classes': lambda: Wrapper(Images(), lambda y: min(y, 1)),
    'relabelled subset': lambda: ReversedSubset(Images(), range(12)),
    'subset of a wrapper that renumbers': lambda: Subset(Wrapper(Images(), lambda y: 2 - y), range(12)),
    'concatenation with one that renumbers': lambda: ConcatDataset([Images(), Wrapper(Images(), lambda y: y // 2)]),
}


def labelled(dataset, targets):
    dataset.targets = targets
    return dataset


@pytest.mark.parametrize('make', RIGHT.values(), ids=RIGHT)
def test_labels_found_are_those_of_the_items(make):
    dataset = make()
    assert get_targets(dataset).tolist() == labels_of_items(dataset)


@pytest.mark.parametrize('make', RELABELLED.values(), ids=RELABELLED)
def test_labels_of_items_win_over_those_of_what_is_wrapped(make, caplog):
    dataset = make()
    assert get_targets(dataset).tolist() == labels_of_items(dataset)
    assert 'items are read for their labels' in caplog.text
    counts = timm_lt.ClassDistribution.from_dataset(dataset).counts
    assert counts.tolist() == torch.bincount(torch.tensor(labels_of_items(dataset)), minlength=len(counts)).tolist()
    subset = ImageSubset(dataset, [11, 0])
    assert subset.targets.tolist() == labels_of_items(subset)


@pytest.mark.parametrize('label', [torch.tensor([0.0, 1.0]), 'cat', 0.5, None, [0, 1], True])
def test_an_item_without_a_class_number_is_refused(label):
    with pytest.raises(ValueError, match='the labels of the items of Wrapper'):
        get_targets(Wrapper(Images(), lambda y: label))


@pytest.mark.parametrize('convert', [torch.tensor, np.int64, np.uint8, lambda y: torch.tensor([y], dtype=torch.int16)])
def test_items_may_have_labels_of_any_integer_type(convert):
    assert get_targets(Wrapper(Images(), convert)).tolist() == LABELS


def test_few_items_are_read_and_generators_stay_as_they_were():
    dataset = Images([c for c in range(100) for _ in range(50)])
    states = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    get_targets(dataset)
    assert 0 < dataset.read <= 64
    assert random.getstate() == states[0] and np.random.get_state()[1].tolist() == states[1]
    assert torch.equal(torch.get_rng_state(), states[2])


def test_an_unreadable_image_does_not_hide_the_labels():
    def broken(label):
        raise OSError('no such file')

    assert get_targets(Wrapper(Images(), broken)).tolist() == LABELS


def test_target_transforms_are_applied(folder):
    for dataset in (ImageFolder(folder), timm.data.create_dataset('', root=str(folder))):
        dataset.target_transform = lambda y: 2 - y
        assert get_targets(dataset).tolist() == [2, 2, 2, 2, 1, 1, 0]


def test_a_folder_whose_samples_were_changed_is_read_as_its_items(folder):
    dataset = ImageFolder(folder)
    dataset.samples = [(path, 2 - label) for path, label in dataset.samples]  # `targets` is another list
    assert get_targets(dataset).tolist() == labels_of_items(dataset) == [2, 2, 2, 2, 1, 1, 0]


def test_a_transform_of_hugging_face_datasets_that_changes_labels_is_noticed(folder, tmp_path):
    datasets = pytest.importorskip('datasets')
    picture = (folder / 'ant' / '0.png').read_bytes()
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['x', 'y']))
    rows = {'image': [{'bytes': picture, 'path': None}] * 5, 'label': [1, 0, 0, 1, 1]}
    datasets.Dataset.from_dict(rows, features=features).to_parquet(tmp_path / 'data' / 'train.parquet')

    def dataset(transform):
        made = timm.data.create_dataset(f'hfds/{tmp_path}/data', root=str(tmp_path / 'cache'), split='train')
        made.reader.dataset.set_transform(transform)
        return made

    assert get_targets(dataset(lambda batch: batch)).tolist() == [1, 0, 0, 1, 1]
    flipped = dataset(lambda batch: {**batch, 'label': [1 - y for y in batch['label']]})
    assert get_targets(flipped).tolist() == labels_of_items(flipped) == [0, 1, 1, 0, 0]


def test_concatenated_datasets_must_number_their_classes_alike():
    def named(names):
        return labelled_names(Images(range(len(names))), names)

    assert get_class_names(ConcatDataset([named(['a', 'b']), Images(), named(['a', 'b', 'c'])])) == ['a', 'b', 'c']
    with pytest.raises(ValueError, match='number their classes differently'):
        get_class_names(ConcatDataset([named(['a', 'b']), named(['b', 'a'])]))


def labelled_names(dataset, names):
    dataset.class_names = names
    return dataset


def test_positions_of_a_subset_are_numbers_not_a_mask():
    with pytest.raises(TypeError, match='indices must be whole numbers, got dtype bool'):
        ImageSubset(Images(), [True] * 12)

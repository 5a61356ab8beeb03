import copy

import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, Dataset, Subset

import timm_lt
from timm_lt.data import (
    ImageSubset,
    get_class_names,
    get_targets,
    long_tailed_counts,
    long_tailed_subset,
    split_indices,
    split_validation,
)


class Coloured(Dataset):
    """Image i has grey value i."""

    def __init__(self, targets, class_names=None):
        self.targets = list(targets)
        self.transform = None
        if class_names:
            self.class_names = class_names

    def __len__(self):
        return len(self.targets)

    def __getitem__(self, i):
        image = Image.new('RGB', (4, 4), (i % 256,) * 3)
        return (image if self.transform is None else self.transform(image)), self.targets[i]


def balanced(n=60, classes=5):
    return Coloured([i % classes for i in range(n * classes)])


@pytest.mark.parametrize('n_max,classes,ratio,total', [(500, 100, 100, 10_847), (5000, 10, 100, 12_406)])
def test_exponential_profile_has_the_published_sizes(n_max, classes, ratio, total):
    assert int(long_tailed_counts(n_max, classes, ratio).sum()) == total


@pytest.mark.parametrize('n_max,ratio,smallest', [(4980, 996, 5), (4900, 49, 100), (1000, 10, 100), (999, 3, 333)])
def test_rounding_never_lands_one_low(n_max, ratio, smallest):
    assert long_tailed_counts(n_max, 10, ratio)[-1] == smallest
    assert long_tailed_counts(n_max, 10, ratio, 'step')[-1] == smallest


def test_exact_powers_are_kept_in_the_middle_of_the_profile():
    # 3 ** -k exactly, which floating point misses for some k
    assert long_tailed_counts(3 ** 9, 10, 3 ** 9).tolist() == [3 ** (9 - k) for k in range(10)]


def test_no_class_is_left_empty():
    assert long_tailed_counts(10, 5, 1000).min() == 1
    assert long_tailed_counts(10, 5, 1000, 'step').tolist() == [10, 10, 1, 1, 1]


def test_step_profile_covers_an_odd_number_of_classes():
    assert long_tailed_counts(100, 5, 10, 'step').tolist() == [100, 100, 10, 10, 10]
    assert long_tailed_counts(100, 1, 10, 'exp').tolist() == long_tailed_counts(100, 1, 10, 'step').tolist() == [100]


def test_ratio_of_one_is_balanced():
    assert long_tailed_counts(7, 4, 1).tolist() == [7] * 4


@pytest.mark.parametrize('kwargs,match', [
    (dict(imbalance_ratio=0.01), 'some papers write it the other way round: 100'),
    (dict(imbalance_ratio=float('nan')), 'imbalance_ratio'),
    (dict(profile='linear'), 'profile must be one of'),
])
def test_bad_profile_or_ratio_is_refused(kwargs, match):
    with pytest.raises(ValueError, match=match):
        long_tailed_counts(10, 4, **kwargs)


@pytest.mark.parametrize('profile', ['exp', 'step'])
def test_subset_has_the_counts_of_the_profile(profile):
    subset = long_tailed_subset(balanced(), 10, profile)
    expected = long_tailed_counts(60, 5, 10, profile)
    assert torch.equal(torch.bincount(subset.targets), expected) and len(subset) == int(expected.sum())
    assert subset.indices == sorted(set(subset.indices))


def test_subset_of_a_larger_ratio_is_nested():
    dataset = balanced()
    parts = [set(long_tailed_subset(dataset, r, seed=3).indices) for r in (1, 2, 10, 60)]
    assert all(b < a for a, b in zip(parts, parts[1:]))


def test_seed_chooses_the_images_and_leaves_the_global_generator_alone():
    dataset = balanced()
    before = torch.get_rng_state()
    a, b, c = (long_tailed_subset(dataset, 10, seed=s).indices for s in (0, 0, 1))
    assert a == b != c
    assert torch.equal(before, torch.get_rng_state())


def test_uneven_source_is_cut_to_its_smallest_class_or_to_n_max():
    dataset = Coloured([0] * 30 + [1] * 20 + [2] * 25)
    assert long_tailed_subset(dataset, 4).targets.bincount().tolist() == [20, 10, 5]
    assert long_tailed_subset(dataset, 9, n_max=27).targets.bincount().tolist() == [27, 9, 3]
    with pytest.raises(ValueError, match='ask for 27 images of class 1, which has 20'):
        long_tailed_subset(dataset, 1, n_max=27)


def test_class_without_images_is_refused():
    with pytest.raises(ValueError, match=r'classes \[1\] have no image'):
        long_tailed_subset(Coloured([0, 0, 2, 2]), 2)


def test_subset_reads_the_images_it_names():
    dataset = balanced()
    subset = long_tailed_subset(dataset, 10)
    for position in (0, 7, len(subset) - 1):
        image, target = subset[position]
        assert image.getpixel((0, 0))[0] == subset.indices[position] % 256
        assert target == subset.targets[position] == dataset.targets[subset.indices[position]]


def test_transforms_of_two_subsets_of_one_dataset_do_not_mix():
    dataset = balanced()
    train, val = split_validation(dataset, 0.2)
    train.transform = lambda image: 'train'
    val.transform = lambda image: 'val'
    assert train[0][0] == 'train' and val[0][0] == 'val' and dataset.transform is None
    inner = long_tailed_subset(train, 2)
    inner.transform = lambda image: 'inner'
    assert inner[0][0] == 'inner' and train[0][0] == 'train' and inner.transform is not train.transform


def test_subset_of_a_subset_keeps_labels_and_images():
    dataset = balanced()
    outer = Subset(dataset, list(range(10, 200)))
    inner = ImageSubset(outer, [3, 5, 8])
    assert inner.indices == [13, 15, 18] and inner.targets.tolist() == [dataset.targets[i] for i in (13, 15, 18)]
    assert inner[1][0].getpixel((0, 0))[0] == 15


def test_transform_that_would_be_ignored_is_refused():
    joined = ImageSubset(ConcatDataset([balanced(), balanced()]), [0, 301])
    assert joined.targets.tolist() == [0, 1] and joined.transform is None
    with pytest.raises(TypeError, match='ConcatDataset has no attribute `transform`'):
        joined.transform = lambda image: image


def test_timm_create_loader_sets_the_transform_through_the_subset():
    from timm.data import create_loader
    subset = long_tailed_subset(balanced(), 10)
    loader = create_loader(
        subset, (3, 8, 8), 16, is_training=True, num_workers=0, device=torch.device('cpu'), persistent_workers=False)
    images, targets = next(iter(loader))
    assert images.shape == (16, 3, 8, 8) and targets.dtype == torch.int64


def test_split_is_stratified_and_spares_single_images():
    targets = torch.tensor([0] * 40 + [1] * 10 + [2] * 2 + [3])
    first, second = split_indices(targets, 0.1)
    assert targets[second].bincount(minlength=4).tolist() == [4, 1, 1, 0]
    assert sorted(first.tolist() + second.tolist()) == list(range(len(targets)))
    assert torch.equal(split_indices(targets, 0.1)[1], second)
    assert not torch.equal(split_indices(targets, 0.1, seed=1)[1], second)
    assert targets[split_indices(targets, 0.99)[0]].bincount(minlength=4).min() == 1


@pytest.mark.parametrize('fraction', [0, 1, -0.1, 1.5])
def test_split_fraction_must_lie_between_zero_and_one(fraction):
    with pytest.raises(ValueError, match='fraction'):
        split_indices([0, 0, 1, 1], fraction)


def test_class_names_and_distribution_follow_the_subset():
    dataset = Coloured([0, 1, 1, 2], ['a', 'b', 'c'])
    subset = ImageSubset(dataset, [0, 1, 2])
    assert get_class_names(subset) == ['a', 'b', 'c']
    distribution = timm_lt.ClassDistribution.from_dataset(subset)
    assert distribution.counts.tolist() == [1, 2, 0] and distribution.class_names == ['a', 'b', 'c']


def test_indices_outside_the_dataset_are_refused():
    with pytest.raises(ValueError, match='indices must be in'):
        ImageSubset(balanced(), [0, 300])


def test_subset_survives_pickling():
    import pickle
    subset = long_tailed_subset(balanced(), 10)
    again = pickle.loads(pickle.dumps(subset))
    assert again.indices == subset.indices and torch.equal(get_targets(again), subset.targets)
    assert copy.copy(subset)[0][1] == subset[0][1]

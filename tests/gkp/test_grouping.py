import pytest
import torch
import torch.nn.functional as F

from timm_lt.gkp import (
    MemoryBank,
    canonical_groups,
    class_gradient_cosine,
    class_gradient_similarity,
    group_classes,
    spectral_groups,
)
from timm_lt.gkp.grouping import weighted_spectral_groups


def planted_similarity(groups, noise=0.05):
    groups = torch.tensor(groups)
    similarity = (groups[:, None] == groups).double() * 0.9
    similarity += noise * torch.randn(similarity.shape, generator=torch.Generator().manual_seed(0)).double()
    return ((similarity + similarity.T) / 2).clamp(-1, 1).fill_diagonal_(1)


def normalised_cut(similarity, groups):
    affinity = 1 + similarity
    affinity = affinity - torch.diag(affinity.diagonal())
    return sum(float(affinity[groups == k][:, groups != k].sum() / affinity[groups == k].sum())
               for k in groups.unique())


def test_planted_groups_are_found_and_numbered_by_their_first_class():
    planted = [2, 0, 0, 1, 2, 1, 0, 2, 1, 1]
    groups = spectral_groups(planted_similarity(planted), 3)
    assert groups.tolist() == canonical_groups(planted).tolist() == [0, 1, 1, 2, 0, 2, 1, 0, 2, 2]


def test_found_groups_have_the_smallest_normalised_cut_of_all_partitions_in_two():
    similarity = planted_similarity([0, 1, 0, 1, 1, 0, 0], noise=0.2)
    found = spectral_groups(similarity, 2)
    cuts = {}
    for code in range(1, 2 ** 6):
        groups = torch.tensor([0] + [code >> i & 1 for i in range(6)])
        cuts[tuple(groups.tolist())] = normalised_cut(similarity, groups)
    assert tuple(found.tolist()) == min(cuts, key=cuts.get)


def test_same_seed_gives_the_same_groups_and_leaves_global_generators_alone():
    import numpy as np
    similarity = torch.randn(30, 30).double()
    similarity = ((similarity + similarity.T) / 8).clamp(-1, 1).fill_diagonal_(1)
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, second = spectral_groups(similarity, 4, seed=5), spectral_groups(similarity, 4, seed=5)
    assert torch.equal(first, second)
    assert torch.equal(torch_state, torch.get_rng_state()) and (numpy_state == np.random.get_state()[1]).all()


@pytest.mark.parametrize('num_groups, expected', [(1, [0, 0, 0]), (3, [0, 1, 2]), (9, [0, 1, 2])])
def test_one_group_and_as_many_groups_as_classes_need_no_clustering(num_groups, expected):
    assert spectral_groups(torch.ones(3, 3), num_groups).tolist() == expected


def test_number_of_groups_below_one_is_refused():
    with pytest.raises(ValueError, match='num_groups must be >= 1'):
        spectral_groups(torch.ones(3, 3), 0)


@pytest.mark.parametrize('seed', range(4))
def test_points_with_counts_are_cut_as_their_classes_would_be(seed):
    generator = torch.Generator().manual_seed(seed)
    planted = torch.tensor([0, 0, 0, 1, 1, 1, 2, 2, 2])
    vectors = torch.randn(3, 20, generator=generator)[planted] + 0.5 * torch.randn(9, 20, generator=generator)
    unit = F.normalize(vectors.double(), dim=1)
    counts = torch.randint(1, 6, (9,), generator=generator)
    point = torch.repeat_interleave(torch.arange(9), counts)
    similarity = unit @ unit.T
    whole = spectral_groups(similarity[point][:, point], 3)
    assert torch.equal(canonical_groups(weighted_spectral_groups(similarity, counts, 3)[point]), whole)


def filled_bank(vectors):
    """A bank in which class c scores best at epoch c of its vector's number."""
    bank = MemoryBank(len(vectors))
    for epoch in sorted(set(vectors)):
        score = torch.tensor([1.0 if v == epoch else -1.0 - v for v in vectors])
        parameter = torch.zeros(8)
        parameter[epoch % 4 * 2:epoch % 4 * 2 + 2] = torch.tensor([1.0, 0.1 * epoch])
        bank.update(epoch, score, [parameter])
    assert bank.best_epoch.tolist() == vectors
    return bank


def test_classes_are_grouped_by_their_snapshots():
    # epochs 0 and 4, 1 and 5, 2 and 6 point almost the same way
    bank = filled_bank([0, 4, 1, 5, 5, 2, 6, 0])
    groups, source = group_classes(bank, 3)
    assert source == 'bank' and groups.tolist() == [0, 0, 1, 1, 1, 2, 2, 0]


def test_bank_with_fewer_snapshots_than_groups_falls_back_to_gradients():
    bank = filled_bank([0, 0, 0, 0, 1, 1])
    fallback = planted_similarity([0, 1, 2, 0, 1, 2])
    groups, source = group_classes(bank, 3, fallback=fallback)
    assert source == 'gradient' and groups.tolist() == [0, 1, 2, 0, 1, 2]
    groups, source = group_classes(bank, 3)
    assert source == 'trivial' and groups.tolist() == [0, 0, 0, 0, 1, 1]
    groups, source = group_classes(bank, 2, fallback=fallback)
    assert source == 'bank' and groups.tolist() == [0, 0, 0, 0, 1, 1]


def test_class_gradient_cosine_matches_autograd():
    features, labels = torch.randn(20, 6).double(), torch.arange(20) % 4
    weight = torch.randn(5, 6).double().requires_grad_()  # class 4 has no sample
    gradients = torch.stack([
        torch.autograd.grad(F.cross_entropy(features[labels == c] @ weight.T, labels[labels == c]), weight)[0].flatten()
        for c in range(4)])
    unit = gradients / gradients.norm(dim=1, keepdim=True)
    residuals = (features @ weight.detach().T).softmax(1) - F.one_hot(labels, 5)
    cosine = class_gradient_cosine(features, residuals, labels, 5)
    torch.testing.assert_close(cosine[:4, :4], unit @ unit.T)
    assert cosine[4].tolist() == [0, 0, 0, 0, 1]
    counts = torch.tensor([50, 20, 8, 2, 1])
    batch = (gradients * (counts[:4] / counts.sum())[:, None]).sum(0)
    similarity = class_gradient_similarity(features, residuals, labels, counts)
    torch.testing.assert_close(similarity[:4], F.cosine_similarity(gradients, batch[None]))
    assert similarity[4].isnan()

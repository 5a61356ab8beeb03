"""Labels, counts, samplers, subsets and losses do not depend on torch's default device and default dtype."""

import pytest
import torch
from loss_cases import COUNTS, NAMES, call, make_batch

import timm_lt
from timm_lt import ClassDistribution
from timm_lt.data import long_tailed_counts, long_tailed_subset, split_indices

TARGETS = [0] * 90 + [1] * 40 + [2] * 12 + [3] * 7
DTYPES = [torch.float16, torch.bfloat16, torch.float64]


@pytest.fixture(params=['meta', *DTYPES], ids=str)
def set_default(request):
    """Puts another default in force when called."""
    def put():
        if request.param == 'meta':
            torch.set_default_device('meta')
        else:
            torch.set_default_dtype(request.param)

    yield put
    torch.set_default_device(None)
    torch.set_default_dtype(torch.float32)


class Images:
    class_names = None

    def __init__(self):
        self.targets = TARGETS

    def __len__(self):
        return len(TARGETS)


@pytest.mark.parametrize('name', timm_lt.list_samplers())
def test_samplers(name, set_default):
    def order():
        options = {'num_epochs': 3} if name == 'progressive' else {}
        whole = timm_lt.create_sampler(name, TARGETS, **options)
        part = timm_lt.create_sampler(name, TARGETS, num_replicas=4, rank=1, **options)
        whole.set_epoch(1)
        return list(whole), list(part), whole.class_shares(1).tolist()

    expected = order()
    set_default()
    assert order() == expected


def figures():
    distribution = ClassDistribution.from_targets(TARGETS)
    large = ClassDistribution([100_003, 70_001, 3])
    return [
        distribution.counts.tolist(), distribution.priors.tolist(), distribution.imbalance_ratio,
        large.imbalance_ratio, large.priors.tolist(), large.num_samples, distribution.size_groups(3).tolist(),
        [mask.tolist() for rule in ('gt100_lt20', 'thirds', '50,10') for mask in distribution.splits(rule).values()],
        distribution.tail(20).tolist(), distribution.head(20).tolist(), distribution.to_dict(),
        ClassDistribution({2: 5, 0: 100_003, 1: 7}).counts.tolist(),
    ]


def test_class_distributions(set_default):
    expected = figures()
    set_default()
    assert figures() == expected


def subsets():
    subset = long_tailed_subset(Images(), 4, n_max=7)
    return [
        subset.indices, subset.targets.tolist(), [part.tolist() for part in split_indices(TARGETS, 0.3)],
        long_tailed_counts(5000, 10, 100).tolist(), long_tailed_counts(5000, 10, 100, 'step').tolist(),
    ]


def test_subsets_and_splits(set_default):
    expected = subsets()
    set_default()
    assert subsets() == expected


@pytest.mark.parametrize('name', NAMES)
def test_losses(name, set_default):
    logits, target = make_batch(dtype=torch.float32)
    with_weights = {} if name == 'bcl' else {'class_weight': torch.linspace(0.1, 3.0, len(COUNTS))}

    def make():
        loss = timm_lt.create_loss(name, [100_003, 70_001, 300, 20, 3], **with_weights)
        return loss, {key: buffer.clone() for key, buffer in loss.named_buffers()}

    expected, buffers = make()
    expected_value = call(name, expected, logits, target)
    set_default()
    loss, seen = make()
    torch.set_default_device(None)  # the batch is on the CPU
    for key, buffer in buffers.items():
        assert torch.equal(seen[key], buffer), key
    torch.testing.assert_close(call(name, loss, logits, target), expected_value)


@pytest.mark.parametrize('name', NAMES)
def test_statistics_of_losses_survive_a_cast(name):
    loss = timm_lt.create_loss(name, [100_003, 70_001, 300, 20, 3])
    if name == 'gala':
        loss.gradient_sum += torch.tensor([100_000.001, 3, 2, 1, 1e-7], dtype=torch.float64)
    before = {key: buffer.clone() for key, buffer in loss.named_buffers()}
    for cast in (torch.nn.Module.half, torch.nn.Module.bfloat16, lambda m: m.to(torch.float16), torch.nn.Module.float):
        cast(loss)
        for key, buffer in loss.named_buffers():
            assert torch.equal(buffer, before[key]), key
    inside = torch.nn.Sequential(loss).to(torch.bfloat16)[0]
    assert all(torch.equal(buffer, before[key]) for key, buffer in inside.named_buffers())


@pytest.mark.parametrize('make', [
    lambda: torch.nn.CrossEntropyLoss(), lambda: timm_lt.create_loss('balanced_softmax', COUNTS),
], ids=['torch', 'ours'])
def test_deferred_weights_survive_a_cast(make):
    criterion = make()
    drw = timm_lt.losses.DeferredReweighting(criterion, COUNTS, start_epoch=0)
    logits, target = make_batch(dtype=torch.float32)
    drw.set_epoch(0)
    expected = criterion(logits, target)
    criterion.half()
    torch.testing.assert_close(criterion(logits, target), expected, rtol=1e-6, atol=0)

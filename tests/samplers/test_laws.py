"""Laws of the samplers: how often they draw the images of each class."""

import math

import pytest
import torch
from sampler_cases import COUNTS, NAMES, drawn_per_class, make, make_targets, options


def expected_shares(name, counts, epoch):
    """The laws in plain Python."""
    n, total, classes = counts, sum(counts), len(counts)
    weights = {
        'instance_balanced': lambda c: n[c] / total,
        'class_balanced': lambda c: 1 / classes,
        'square_root': lambda c: math.sqrt(n[c]),
        'progressive': lambda c: (1 - epoch / 8) * n[c] / total + (epoch / 8) / classes,
        'effective_number': lambda c: n[c] / ((1 - 0.9999 ** n[c]) / (1 - 0.9999)),
        'repeat_factor': lambda c: n[c] * max(1.0, math.sqrt(0.2 * total / n[c])),
        'reverse': lambda c: max(n) / n[c],
        'power': lambda c: n[c] ** 0.3,
        'm_per_class': lambda c: 1 / classes,
    }[name]
    values = [weights(c) for c in range(classes)]
    return [v / sum(values) for v in values]


@pytest.mark.parametrize('epoch', [0, 3])
@pytest.mark.parametrize('name', NAMES)
def test_class_shares_follow_the_published_law(name, epoch):
    shares = make(name, **options(name)).class_shares(epoch)
    torch.testing.assert_close(
        shares, torch.tensor(expected_shares(name, COUNTS, epoch), dtype=torch.float64), rtol=1e-9, atol=0)


@pytest.mark.parametrize('name', NAMES)
def test_each_epoch_is_within_one_draw_of_the_law(name):
    targets = make_targets()
    sampler = make(name, targets, **options(name))
    for epoch in range(12):
        expected = sampler.class_shares(epoch) * len(sampler)
        drawn = drawn_per_class(sampler, targets, epoch)
        assert int(drawn.sum()) == len(sampler)
        assert float((drawn - expected).abs().max()) < 1, (name, epoch)


@pytest.mark.parametrize('name', ['square_root', 'reverse', 'effective_number', 'repeat_factor', 'class_balanced'])
def test_mean_over_epochs_is_the_law_itself(name):
    targets = make_targets()
    sampler = make(name, targets, num_samples=71, **options(name))
    mean = torch.stack([drawn_per_class(sampler, targets, e).double() for e in range(800)]).mean(0)
    # a quota is a Bernoulli rounding: 5 standard deviations of its mean over 800 epochs are at most 5 * 0.5 / sqrt(800)
    assert float((mean - sampler.class_shares(0) * len(sampler)).abs().max()) < 5 * 0.5 / math.sqrt(800)


@pytest.mark.parametrize('name', NAMES)
def test_images_of_a_class_are_exhausted_before_any_repeats(name):
    targets = make_targets()
    sampler = make(name, targets, num_samples=200, **options(name))
    order = sampler.order(3)
    for c, count in enumerate(COUNTS):
        images = order[targets[order] == c].tolist()
        rounds = [images[i:i + count] for i in range(0, len(images), count)]
        if name == 'instance_balanced':
            continue  # its rounds are over all images
        assert all(len(set(r)) == len(r) for r in rounds), (name, c)
        assert set(images) <= set((targets == c).nonzero().flatten().tolist())


def test_every_image_of_a_class_has_the_same_chance():
    targets = make_targets()
    sampler = make('class_balanced', targets, num_samples=35)  # 7 draws a class: a part of the large ones
    epochs = 1500
    drawn = sum(torch.bincount(sampler.order(e), minlength=len(targets)) for e in range(epochs))
    for c, count in enumerate(COUNTS):
        chance = 7 / count
        part = chance % 1
        bound = 5 * math.sqrt(max(part * (1 - part), 1e-12) / epochs)
        assert float((drawn[targets == c] / epochs - chance).abs().max()) <= bound + 1e-9, c


def test_instance_balanced_draws_each_image_once():
    sampler = make('instance_balanced')
    assert sorted(sampler) == list(range(sum(COUNTS)))
    longer = make('instance_balanced', num_samples=100).order(0)
    assert len(longer) == 100 and sorted(longer[:71].tolist()) == list(range(71))
    assert len(set(longer[71:].tolist())) == 29


def test_class_balanced_has_every_class_once_in_each_run_of_c_draws():
    targets = make_targets()
    classes = targets[make('class_balanced', targets).order(2)]
    for i in range(0, len(classes) - 5, 5):
        assert sorted(classes[i:i + 5].tolist()) == [0, 1, 2, 3, 4]
    assert len(set(tuple(classes[i:i + 5].tolist()) for i in range(0, 70, 5))) > 1


def test_m_per_class_has_m_images_of_each_class_of_a_batch():
    targets = make_targets()
    sampler = make('m_per_class', targets, m=3)
    order = sampler.order(1)
    assert len(order) == 69 == 71 // 3 * 3
    runs = targets[order].view(-1, 3)
    assert bool((runs == runs[:, :1]).all())
    for i in range(0, 20, 5):
        assert sorted(runs[i:i + 5, 0].tolist()) == [0, 1, 2, 3, 4]
    rows = order.view(-1, 3)[runs[:, 0] == 0]
    assert len(set(rows.flatten().tolist())) == rows.numel(), 'a large class repeats no image'
    assert len(make('m_per_class', targets, m=100)) == 100


def test_power_reaches_from_balance_to_shuffling():
    shares = {q: make('power', q=q).class_shares(0).tolist() for q in (0, 0.5, 1)}
    assert shares[0] == [0.2] * 5
    assert shares[0.5] == make('square_root').class_shares(0).tolist()
    assert shares[1] == pytest.approx([n / 71 for n in COUNTS])


def test_progressive_goes_from_shuffling_to_balance():
    targets = make_targets()
    sampler = make('progressive', targets)
    assert sorted(sampler.order(0).tolist()) == list(range(len(targets)))
    assert drawn_per_class(sampler, targets, 4).tolist()[0] in (27, 28)  # 71 * (0.5 * 40 / 71 + 0.5 / 5) = 27.1
    torch.testing.assert_close(sampler.class_shares(8), torch.full((5,), 0.2, dtype=torch.float64))
    torch.testing.assert_close(sampler.class_shares(99), sampler.class_shares(8))


def test_released_progressive_is_balanced_in_its_last_epoch():
    targets = make_targets()
    sampler = make('progressive', targets, variant='released')
    shares = torch.tensor(COUNTS, dtype=torch.float64) / sum(COUNTS)
    torch.testing.assert_close(sampler.class_shares(3), shares + 3 / 7 * (0.2 - shares))
    assert sampler.class_shares(7).tolist() == [0.2] * 5
    assert make('progressive', targets, variant='released', num_epochs=1).class_shares(0).tolist() == shares.tolist()


def test_a_progressive_state_of_an_earlier_version_is_of_the_paper():
    state = make('progressive').state_dict()
    del state['variant']
    make('progressive').load_state_dict(state)
    with pytest.raises(ValueError, match='variant=paper'):
        make('progressive', variant='released').load_state_dict(state)


def test_oversampled_epoch_has_every_image_and_the_classes_alike():
    targets = make_targets()
    sampler = make('class_balanced', targets, epoch_length='oversampled')
    assert len(sampler) == 5 * 40 and set(sampler) == set(range(len(targets)))
    assert drawn_per_class(sampler, targets, 0).tolist() == [40] * 5
    assert len(make('class_balanced', targets, epoch_length='oversampled', num_samples=35)) == 35


def test_repeat_factor_draws_each_image_floor_or_ceil_of_its_factor():
    targets = make_targets()
    sampler = make('repeat_factor', targets, threshold=0.2)
    factors = torch.tensor([max(1.0, math.sqrt(0.2 * 71 / n)) for n in COUNTS], dtype=torch.float64)
    torch.testing.assert_close(sampler.repeat_factors, factors)
    extra = float(((factors - 1) * torch.tensor(COUNTS)).sum())
    assert len(sampler) == 71 + math.ceil(extra)
    highest = 1 + (factors - 1) * math.ceil(extra) / extra
    for epoch in range(20):
        times = torch.bincount(sampler.order(epoch), minlength=len(targets)).double()
        assert bool((times >= factors[targets].floor()).all())
        assert bool((times <= highest[targets].ceil()).all())
    # nothing is rarer than the threshold: plain shuffling
    assert sorted(make('repeat_factor', threshold=0.001)) == list(range(71))


def test_effective_number_has_both_limits():
    for beta, name in ((0.0, 'instance_balanced'), (0, 'instance_balanced'), (1.0, 'class_balanced')):
        torch.testing.assert_close(
            make('effective_number', beta=beta).class_shares(0), make(name).class_shares(0), rtol=1e-12, atol=0)
    # next to 1 the formula does not cancel
    torch.testing.assert_close(
        make('effective_number', beta=1 - 1e-15).class_shares(0), make('class_balanced').class_shares(0))

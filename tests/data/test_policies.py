"""Random programs: their frequencies, magnitudes and signs against the transforms that they come from."""

import dataclasses
import random
from collections import Counter

import numpy as np
import pytest
import torch
from timm.data import auto_augment as timm_policies
from torchvision import transforms

from timm_lt.data import Augmentation
from timm_lt.data.augment import timm_policies as ours
from timm_lt.data.augment.batch_form import batch_form
from timm_lt.data.augment.draws import Draws
from timm_lt.data.augment.operations import OPERATIONS
from timm_lt.data.augment.policies import argument

N = 20_000
PLAIN = Augmentation((3, 32, 32), (0.5,) * 3, (0.25,) * 3)


def draw(policy, n=N, seed=0):
    program = policy.draw(Draws((seed,), n, slice(None)), 32, 32)
    names = [[OPERATIONS[code] for code in row] for row in program.codes.tolist()]
    return names, [[round(a, 6) for a in row] for row in program.arguments.tolist()]


def pairs(names, arguments):
    """How often each operation, or chain of them, occurs with which argument."""
    return Counter(tuple((n, 0. if n in NO_ARGUMENT else a) for n, a in zip(ns, values) if n != 'Identity')
                   for ns, values in zip(zip(*names), zip(*arguments)))


NO_ARGUMENT = ('Invert', 'AutoContrast', 'Equalize', 'Grey')


def assert_same_law(counts, probabilities, n=N):
    """Each frequency lies within 5 standard deviations of its probability."""
    assert abs(sum(probabilities.values()) - 1) < 1e-6
    assert set(counts) <= {k for k, p in probabilities.items() if p > 0}
    for key, p in probabilities.items():
        assert abs(counts[key] - n * p) <= 5 * (n * p * (1 - p)) ** 0.5 + 1, key


@pytest.mark.parametrize('policy', list(transforms.AutoAugmentPolicy))
def test_sub_policies_magnitudes_and_signs_have_the_probabilities_of_torchvision(policy):
    reference = transforms.AutoAugment(policy)
    space = reference._augmentation_space(10, (32, 32))
    law = Counter()

    def outcomes(name, p, level):
        magnitudes, signed = space[name]
        magnitude = 0. if level is None else float(magnitudes[level])
        signs = (-1, 1) if signed else (1,)
        for sign in signs:
            value = 0. if name in NO_ARGUMENT else round(float(argument(name, sign * magnitude)), 6)
            yield ((name, value),), p / len(signs)
        yield (), 1 - p

    for first, second in reference.policies:
        for a, p in outcomes(*first):
            for b, q in outcomes(*second):
                law[a + b] += p * q / len(reference.policies)
    assert_same_law(pairs(*draw(batch_form(reference))), law)


def test_trivial_augment_draws_operation_magnitude_and_sign_uniformly():
    reference = transforms.TrivialAugmentWide()
    law = Counter()
    for name, (magnitudes, signed) in (space := reference._augmentation_space(31)).items():
        for magnitude in magnitudes.expand(31).tolist():
            for sign in (-1, 1):
                value = 0. if name in NO_ARGUMENT else round(float(
                    argument(name, sign * magnitude if signed else magnitude)), 6)
                law[() if name == 'Identity' else ((name, value),)] += 1 / (62 * len(space))
    assert_same_law(pairs(*draw(batch_form(reference))), law)


class _Fixed:
    """timm's random numbers, given."""

    def __init__(self, monkeypatch, sign):
        monkeypatch.setattr(timm_policies.random, 'random', lambda: 0.9 if sign < 0 else 0.1)


@pytest.mark.parametrize('sign', [-1, 1])
@pytest.mark.parametrize('name', list(ours.OPERATIONS))
def test_argument_of_each_level_is_that_of_timm(name, sign, monkeypatch):
    _Fixed(monkeypatch, sign)
    hparams = {'translate_const': 14, 'translate_pct': 0.3}
    levels = [0., 0.6, 2.5, 5., 7.49, 9., 10.]
    operation, function = ours.OPERATIONS[name]
    out = function(torch.tensor(levels, dtype=torch.float64) / 10, torch.full((7,), float(sign)).double(), 40, 20,
                   hparams)
    theirs = timm_policies.LEVEL_TO_ARG[name]
    if theirs is None:
        assert not out.any()
        return
    for level, value in zip(levels, out.tolist()):
        expected = theirs(level, hparams)[0]
        if name.endswith('Rel'):
            expected *= 40 if 'X' in name else 20
        if name == 'Desaturate':
            expected = 1 - expected
        assert value == pytest.approx(expected), level


@pytest.mark.parametrize('config', ['rand-m9-mstd0.5-inc1', 'rand-m5-n3-p0.7', 'rand-m8-tweights-mstd101-inc1'])
def test_rand_augment_chooses_operations_and_magnitudes_as_timm(config):
    reference = timm_policies.rand_augment_transform(config, {'interpolation': 2, 'translate_const': 14})
    names, arguments = draw(batch_form(reference))
    theirs, magnitudes = [], []
    np.random.seed(0)
    random.seed(0)
    for op in reference.ops:
        op.aug_fn = lambda image, *args, name=op.name, **_: image + [(name, *args)]
    for _ in range(4_000):
        theirs.append(reference([]))
    per_image = sum(len(ops) for ops in theirs) / 4_000
    ours_per_image = sum(n != 'Identity' for row in names for n in row) / N
    assert ours_per_image == pytest.approx(per_image, abs=0.05)
    frequency = Counter(ours.OPERATIONS[name][0] for ops in theirs for name, *_ in ops)
    own = Counter(n for row in names for n in row if n != 'Identity')
    for name in own | frequency:
        p = own[name] / N
        assert abs(frequency[name] / 4_000 - p) <= 6 * (p / 4_000) ** 0.5 + 0.002, name
    magnitudes = [abs(args[0]) for ops in theirs for name, *args in ops if name == 'Rotate']
    mine = [abs(a) for row, values in zip(names, arguments) for n, a in zip(row, values) if n == 'Rotate']
    assert np.mean(mine) == pytest.approx(np.mean(magnitudes), rel=0.05)
    assert np.std(mine) == pytest.approx(np.std(magnitudes), abs=0.5)


@pytest.mark.parametrize('config,most', [('rand-m10-mstd3', 30.), ('rand-m10-mstd8-mmax20', 60.)])
def test_magnitude_with_noise_stays_in_its_range(config, most):
    reference = timm_policies.rand_augment_transform(config, {'interpolation': 2})
    names, arguments = draw(batch_form(reference), 2_000)
    degrees = [abs(a) for row, values in zip(names, arguments) for n, a in zip(row, values) if n == 'Rotate']
    assert max(degrees) == most and 0 <= min(degrees) < most / 2


def test_weighted_choice_takes_no_operation_twice():
    reference = timm_policies.rand_augment_transform('rand-m8-n3-p1-tweights-inc1', {'interpolation': 2})
    names, _ = draw(batch_form(reference), 500)
    assert all(len(set(row)) == 3 for row in zip(*names))


@pytest.mark.parametrize('policy', ['v0', 'v0r', 'original', 'originalr'])
def test_auto_augment_draws_the_sub_policies_of_timm(policy):
    reference = timm_policies.auto_augment_transform(policy, {'interpolation': 2})
    names, _ = draw(batch_form(reference))
    law = Counter()
    for sub_policy in reference.policy:
        chains = {(): 1 / len(reference.policy)}
        for op in sub_policy:
            longer = Counter()
            for chain, p in chains.items():
                longer[(*chain, ours.OPERATIONS[op.name][0])] += p * op.prob
                longer[chain] += p * (1 - op.prob)
            chains = longer
        law.update(chains)
    assert_same_law(Counter(tuple(n for n in row if n != 'Identity') for row in zip(*names)), law)


def test_jitter_takes_its_operations_in_any_order_and_its_factors_from_the_ranges():
    jitter = transforms.RandomApply([transforms.ColorJitter(0.4, 0.2, 0.3, 0.1)], p=0.8)
    names, arguments = draw(batch_form(jitter))
    chains = Counter(zip(*names))
    changed = 1 - chains.pop(('Identity',) * 4) / N
    assert abs(changed - 0.8) < 5 * (0.16 / N) ** 0.5
    assert len(chains) == 24
    assert_same_law(chains, dict.fromkeys(chains, 1 / 24), sum(chains.values()))
    for name, low, high in (
            ('Brightness', 0.6, 1.4), ('Contrast', 0.8, 1.2), ('Color', 0.7, 1.3), ('Hue', -0.1, 0.1)):
        values = [a for row, line in zip(names, arguments) for n, a in zip(row, line) if n == name]
        assert low <= min(values) < low + 0.01 and high - 0.01 < max(values) <= high
        assert abs(np.mean(values) - (low + high) / 2) < 0.01


def test_grey_and_blur_have_their_probabilities():
    names, _ = draw(batch_form(transforms.RandomGrayscale(0.2)))
    assert_same_law(Counter(names[0]), {'Grey': 0.2, 'Identity': 0.8})
    names, sigma = draw(batch_form(transforms.RandomApply([transforms.GaussianBlur(23)], p=0.5)))
    assert_same_law(Counter(names[0]), {'Blur': 0.5, 'Identity': 0.5})
    assert 0.1 <= min(sigma[0]) < 0.11 and 1.99 < max(sigma[0]) <= 2.0


def test_aug_mix_blends_the_image_with_chains_of_all_depths():
    reference = timm_policies.augment_and_mix_transform('augmix-m5-w2', {'interpolation': 2, 'img_mean': (128,) * 3})
    mix = batch_form(reference)
    program = mix._draw_chain(Draws((0,), N, slice(None)), 32, 32)
    depth = Counter((program.codes != 0).sum(0).tolist())
    assert_same_law(depth, {1: 1 / 3, 2: 1 / 3, 3: 1 / 3})
    images = torch.full((4_000, 3, 8, 8), 128, dtype=torch.uint8)
    out = mix(images, Draws((0,), 4_000, slice(None))).float().mean((1, 2, 3))
    picture = timm_policies.Image.new('RGB', (8, 8), (128,) * 3)
    random.seed(0)
    np.random.seed(0)
    theirs = np.array([np.asarray(reference(picture)).mean() for _ in range(1_000)])
    assert abs(float(out.mean()) - theirs.mean()) < 5 * theirs.std() / 1_000 ** 0.5
    assert float(out.std()) == pytest.approx(theirs.std(), rel=0.15)


@pytest.mark.parametrize('changes', [
    dict(auto_augment='3a'), dict(auto_augment='rand-m9-t3aw'), dict(auto_augment='augmix-m3-b1'),
    dict(auto_augment='augmix-a2.5'), dict(auto_augment='v0', interpolation='random'), dict(crop_mode='rkrc'),
    dict(crop_mode='rrc', interpolation='lanczos'),
])
def test_what_has_no_batch_form_stays_on_single_images(changes):
    augmentation = dataclasses.replace(PLAIN, **changes)
    assert not augmentation.batchwise and not augmentation.takes((3, 32, 32))
    with pytest.raises(ValueError, match='single images only'):
        augmentation.batch_augment(whole=True)

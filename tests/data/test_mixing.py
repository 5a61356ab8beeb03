"""Mixings in favour of rare classes: images and targets against plain loops, pairs of loaders, runs."""

import json

import numpy as np
import pytest
import torch

from timm_lt.data import Augmentation, InMemoryImages, PairedLoader, create_mixing, create_train_loader, list_mixings
from timm_lt.samplers import create_sampler
from timm_lt.training import main
from timm_lt.training.windows import Windows

COUNTS = [300, 120, 60, 3]
LABEL = torch.tensor([0, 0, 1, 3, 2, 0, 3, 1])
IMAGES = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0))
PARTNERS = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(1))
PARTNER_LABEL = torch.tensor([3, 0, 2, 1, 3, 2, 3, 0])


def mixed(name, seed=0, **options):
    """Mixing, its result, and numpy's generator after the draw of ``prob``."""
    mixing = create_mixing(name, COUNTS, **options)
    mixing.set_epoch(5)
    partners = () if mixing.partners is None else (PARTNERS, PARTNER_LABEL)
    np.random.seed(seed)
    images, target = mixing(IMAGES, LABEL, *partners)
    assert target.shape == (8, 4) and target.dtype == torch.float32
    torch.testing.assert_close(target.sum(1), torch.ones(8))
    np.random.seed(seed)
    np.random.rand()
    return images, target


def soft(label, other, share):
    target = torch.zeros(4)
    target[label] += share
    target[other] += 1 - share
    return target


@pytest.mark.parametrize('seed', range(4))
def test_remix_gives_the_smaller_class_the_label(seed):
    images, target = mixed('remix', seed)
    order, lam = np.random.permutation(8), np.random.beta(1, 1)
    for i, j in enumerate(order):
        torch.testing.assert_close(images[i], lam * IMAGES[i] + (1 - lam) * IMAGES[j])
        ratio, share = COUNTS[LABEL[i]] / COUNTS[LABEL[j]], lam
        if ratio >= 3 and lam < 0.5:
            share = 0.0
        elif ratio <= 1 / 3 and 1 - lam < 0.5:
            share = 1.0
        torch.testing.assert_close(target[i], soft(LABEL[i], LABEL[j], share))


def test_cmo_pastes_one_box_of_the_partner_and_counts_its_area():
    images, target = mixed('cmo', prob=1.0)
    pasted = (images == PARTNERS).all(1)
    assert torch.equal(images[~pasted[:, None].expand_as(images)], IMAGES[~pasted[:, None].expand_as(images)])
    area = pasted[0].sum()
    assert 0 < area < 36 and bool((pasted == pasted[0]).all())
    rows, columns = pasted[0].any(1).sum(), pasted[0].any(0).sum()
    assert rows * columns == area
    for i in range(8):
        torch.testing.assert_close(target[i], soft(LABEL[i], PARTNER_LABEL[i], 1 - float(area) / 36))


def test_balanced_mixup_weighs_the_balanced_images_by_a_beta_of_alpha_and_one():
    images, target = mixed('balanced_mixup', alpha=0.3)
    lam = np.random.beta(0.3, 1)
    torch.testing.assert_close(images, (1 - lam) * IMAGES + lam * PARTNERS)
    for i in range(8):
        torch.testing.assert_close(target[i], soft(LABEL[i], PARTNER_LABEL[i], 1 - lam))


def test_unimix_leans_towards_the_smaller_class_of_each_pair():
    images, target = mixed('unimix', alpha=0.5, power=-0.5)
    weight = np.array([COUNTS[c] ** -0.5 for c in LABEL])
    order = np.random.choice(8, 8, p=weight / weight.sum())
    draws = np.random.beta(0.5, 0.5, 8)
    for i, j in enumerate(order):
        own, other = COUNTS[LABEL[i]], COUNTS[LABEL[j]]
        share = other / (own + other) + draws[i]
        share = share - 1 if share > 1 else share
        torch.testing.assert_close(images[i], share * IMAGES[i] + (1 - share) * IMAGES[j], atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(target[i], soft(LABEL[i], LABEL[j], share))


@pytest.mark.parametrize('name', list_mixings())
def test_images_stay_before_the_start_epoch_and_where_mixing_is_off(name):
    mixing = create_mixing(name, COUNTS, prob=1.0, start_epoch=2)
    mixing.smoothing = 0.2
    partners = () if mixing.partners is None else (PARTNERS, PARTNER_LABEL)
    for epoch, enabled in ((1, True), (2, False)):
        mixing.set_epoch(epoch)
        mixing.mixup_enabled = enabled
        images, target = mixing(IMAGES, LABEL, *partners)
        assert images is IMAGES
        torch.testing.assert_close(target, 0.8 * torch.nn.functional.one_hot(LABEL, 4) + 0.05)
    mixing.mixup_enabled = True
    assert not torch.equal(mixing(IMAGES, LABEL, *partners)[0], IMAGES)


@pytest.mark.parametrize('name', list_mixings())
@pytest.mark.parametrize('option, value', [('alpha', 0), ('prob', 1.5), ('start_epoch', -1)])
def test_options_of_every_mixing_are_checked(name, option, value):
    with pytest.raises(ValueError, match=option):
        create_mixing(name, COUNTS, **{option: value})


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match='needs the partner.*class_balanced'):
        create_mixing('balanced_mixup', COUNTS)(IMAGES, LABEL)
    with pytest.raises(ValueError, match="Unknown mixing 'remx'.*remix"):
        create_mixing('remx', COUNTS)
    with pytest.raises(ValueError, match='kappa'):
        create_mixing('remix', COUNTS, kappa=0.5)
    with pytest.raises(ValueError, match='tau'):
        create_mixing('remix', COUNTS, tau=2)
    with pytest.raises(TypeError, match='no option'):
        create_mixing('unimix', COUNTS, kappa=3)


def test_windows_with_partners_repeat_themselves_from_any_step():
    targets = torch.repeat_interleave(torch.arange(3), torch.tensor([12, 5, 1]))
    data = InMemoryImages(torch.arange(18, dtype=torch.uint8).view(-1, 1, 1, 1).expand(18, 3, 4, 4).clone(), targets)
    augmentation = Augmentation((3, 4, 4), (0.5,) * 3, (0.5,) * 3, crop_mode='none', hflip=0.0)

    def windows():
        loaders = [
            create_train_loader(data, create_sampler(name, targets, num_samples=18), augmentation, 6)
            for name in ('instance_balanced', 'class_balanced')]
        return Windows(PairedLoader(*loaders), mix=create_mixing('balanced_mixup', [12, 5, 1], alpha=1.0))

    whole, part = windows(), windows()
    whole.set_epoch(1)
    part.set_epoch(1, 2)
    expected, resumed = list(whole), list(part)
    assert len(expected) == 3 and len(resumed) == 1
    for a, b in zip(expected[2], resumed[0]):
        assert torch.equal(a[0], b[0])
    assert bool((expected[0].targets[0].max(1).values < 1).any())


@pytest.mark.parametrize('options', [
    ['--mix', 'cmo', '--mix-kwargs', 'start_epoch=0', 'prob=1.0', '--opt', 'ccsam', '--grad-accum-steps', '2'],
])
def test_a_run_mixes_and_names_its_mixing(tmp_path, options):
    command = [
        '--dataset', 'timm_lt/digits', '--images-per-class', '20', '--imbalance-ratio', '5', '--epochs', '1', '-b', '8',
        '--output', str(tmp_path), '--experiment', 'run', '--quiet', '--loss', 'balanced_softmax', *options]
    assert main(command) == 0
    assert np.isfinite(json.loads((tmp_path / 'run' / 'metrics.json').read_text())['top1'])
    assert 'S. Park' in (tmp_path / 'run' / 'hub' / 'README.md').read_text()


@pytest.mark.parametrize('options, message', [
    (['--mix', 'remix', '--mixup', '0.2'], 'give one'), (['--mix-kwargs', 'alpha=1'], '--mix NAME'),
    (['--mix', 'remx'], "unknown mixing 'remx'"), (['--mix', 'remix', '--loss', 'bcl'], 'does not support soft'),
    (['--mix', 'remix', '--mix-kwargs', 'kappa=0'], 'kappa must be'),
])
def test_options_that_do_not_fit_are_refused(tmp_path, capsys, options, message):
    command = ['--dataset', 'timm_lt/digits', '--output', str(tmp_path), '--experiment', 'run', *options]
    assert main(command) == 2
    assert message in capsys.readouterr().err

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms.functional import normalize, to_tensor

from timm_lt.data import Augmentation, BatchAugment, eval_transform, three_views

MEAN, STD = (0.1, 0.4, 0.7), (0.2, 0.3, 0.25)
SIZE = (3, 8, 8)


@pytest.fixture
def images():
    return torch.randint(1, 256, (12, *SIZE), dtype=torch.uint8)  # 0 is the padding


def augment(**kwargs):
    return BatchAugment(MEAN, STD, **kwargs)


def raw(**kwargs):
    """Without normalisation: pixel values come back."""
    return BatchAugment((0.,) * 3, (1 / 255,) * 3, **kwargs)


def test_normalisation_is_that_of_torchvision(images):
    expected = torch.stack([
        normalize(to_tensor(Image.fromarray(i.permute(1, 2, 0).numpy())), MEAN, STD) for i in images])
    torch.testing.assert_close(augment()(images, 0, 0), expected, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(augment(padding=4, hflip=1).normalize(images), expected, rtol=1e-5, atol=1e-5)


def test_crop_is_a_window_of_the_padded_image(images):
    padded = torch.nn.functional.pad(images, (2,) * 4)
    out = raw(padding=2)(images, 0, 0).round().to(torch.uint8)
    seen = set()
    for image, source in zip(out, padded):
        places = [(y, x) for y in range(5) for x in range(5) if torch.equal(image, source[:, y:y + 8, x:x + 8])]
        assert len(places) == 1
        seen.add(places[0])
    assert len(seen) > 5


def test_crop_offsets_and_flips_are_uniform():
    ramp = torch.arange(1, 10, dtype=torch.uint8).view(1, 1, 3, 3).expand(20_000, 3, 3, 3)
    crop = raw(padding=1)(ramp, 0, 0).round()[:, 0, 1, 1].long()  # the centre pixel names the offset
    counts = torch.bincount(crop, minlength=10)[1:]
    assert (counts - 20_000 / 9).abs().max() < 5 * (20_000 / 9) ** 0.5
    flipped = (raw(hflip=0.3)(ramp, 0, 0).round()[:, 0, 0, 0] == 3).float().mean()
    assert abs(float(flipped) - 0.3) < 5 * (0.21 / 20_000) ** 0.5


@pytest.mark.parametrize('kind,axis', [('hflip', 3), ('vflip', 2)])
def test_flip_of_probability_one_mirrors_every_image(images, kind, axis):
    assert torch.equal(raw(**{kind: 1.})(images, 0, 0).round(), images.flip(axis).float())


def test_cutout_sets_a_square_to_the_mean_and_is_cut_at_the_border():
    images = torch.full((200, *SIZE), 255, dtype=torch.uint8)
    out = augment(cutout=4)(images, 0, 0)
    erased = (out == 0).all(1)
    sizes = set()
    for mask in erased:
        rows, columns = mask.any(1).nonzero().flatten(), mask.any(0).nonzero().flatten()
        h, w = len(rows), len(columns)
        assert 2 <= h <= 4 and 2 <= w <= 4 and int(mask.sum()) == h * w
        sizes.add((h, w))
    assert (4, 4) in sizes and (2, 2) in sizes
    assert torch.equal((out == 0).all(1), (out == 0).any(1))


@pytest.mark.parametrize('remode', ['const', 'rand', 'pixel'])
def test_random_erasing_follows_its_probability_and_area(remode):
    images = torch.full((2_000, 3, 16, 16), 255, dtype=torch.uint8)
    plain = augment().normalize(images)
    changed = (augment(reprob=0.25, remode=remode)(images, 0, 0) != plain).all(1)
    erased = changed.flatten(1).any(1)
    assert abs(float(erased.float().mean()) - 0.25) < 5 * (0.1875 / 2_000) ** 0.5
    share = changed[erased].flatten(1).float().mean(1)
    assert share.min() >= 0.01 and share.max() <= 0.40
    box = augment(reprob=1., remode=remode)(images[:1], 0, 0)[0][:, changed[erased][0]]
    if remode == 'rand':
        assert len(augment(reprob=1., remode='rand')(images[:1], 0, 0)[0, 0].unique()) == 2
    assert box.shape[0] == 3


@pytest.mark.parametrize('options', [
    dict(padding=2, hflip=0.5), dict(padding=2, hflip=0.5, vflip=0.5, cutout=3), dict(reprob=0.7, remode='pixel'),
])
def test_processes_share_the_draws_of_the_global_batch(images, options):
    whole = augment(**options, seed=3)(images, 1, 5)
    for rank in range(2):
        rows = slice(rank, None, 2)
        part = augment(**options, seed=3)(images[rows], 1, 5, len(images), rows)
        assert torch.equal(part, whole[rows])


def test_seed_epoch_and_step_decide_the_draws(images):
    def draw(seed, epoch, step):
        return augment(padding=2, hflip=0.5, seed=seed)(images, epoch, step)

    first = draw(0, 0, 0)
    assert torch.equal(first, draw(0, 0, 0))
    assert all(not torch.equal(first, draw(*key)) for key in ((1, 0, 0), (0, 1, 0), (0, 0, 1)))


def test_augmentation_leaves_images_and_global_generators_alone(images):
    before, state = images.clone(), torch.get_rng_state()
    augment(padding=2, hflip=1., cutout=4, reprob=1., remode='pixel')(images, 0, 0)
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())


def test_views_are_normalised_and_only_the_first_is_erased(images):
    views = torch.stack([images] * 3, 1)
    out = augment(cutout=4, padding=2, hflip=1.)(views, 0, 0)
    plain = augment().normalize(images)
    assert torch.equal(out[:, 1], plain) and torch.equal(out[:, 2], plain) and not torch.equal(out[:, 0], plain)


@pytest.mark.parametrize('options,match', [
    (dict(hflip=1.5), 'hflip'), (dict(padding=-1), 'padding'), (dict(remode='noise'), 'remode'),
])
def test_bad_option_is_refused(options, match):
    with pytest.raises(ValueError, match=match):
        augment(**options)
    with pytest.raises(ValueError, match='one entry per channel'):
        BatchAugment((0.5,), (0.5, 0.5))


# transforms of single images


@pytest.fixture
def picture():
    return Image.fromarray(np.random.RandomState(0).randint(0, 256, (32, 32, 3), dtype=np.uint8))


PLAIN = Augmentation((3, 32, 32), MEAN, STD)


@pytest.mark.parametrize('changes', [
    dict(), dict(crop_mode='none'), dict(crop_mode='rrc'), dict(crop_mode='rkrc'), dict(crop_mode='rkrr'),
    dict(auto_augment='cifar10'), dict(auto_augment='rand-m9-mstd0.5-inc1'), dict(auto_augment='original'),
    dict(auto_augment='augmix-m3-w2'), dict(color_jitter=0.4), dict(color_jitter=(0.4, 0.4, 0.4, 0.1)),
    dict(input_size=(3, 20, 24), crop_mode='pad'), dict(input_size=(1, 32, 32)),
    dict(input_size=(1, 32, 32), mean=(0.5,), std=(0.2,), auto_augment='rand-m9-n2', color_jitter=0.4),
])
def test_image_transform_gives_uint8_of_the_input_size(picture, changes):
    augmentation = dataclasses.replace(PLAIN, **changes)
    transform = augmentation.image_transform()
    for _ in range(30):
        out = transform(picture)
        assert out.dtype == torch.uint8 and out.shape == augmentation.input_size


def test_images_take_the_channels_of_the_network(picture):
    for image in (picture, picture.convert('L')):
        for channels in (1, 3):
            augmentation = dataclasses.replace(PLAIN, input_size=(channels, 32, 32), crop_mode='none', hflip=0.)
            for transform in (augmentation.image_transform(), eval_transform((channels, 32, 32), crop_pct=1.0)):
                grey = transform(image)
                assert grey.shape == (channels, 32, 32)
                if image.mode == 'L' or channels == 1:
                    assert torch.equal(grey[0], torch.from_numpy(np.array(picture.convert('L'))))
    with pytest.raises(ValueError, match='channels must be one of'):
        eval_transform((2, 32, 32))


def test_posterising_to_zero_bits_gives_black(picture):
    # with magnitude 10 every draw of this operation keeps 0 bits, which Pillow refuses
    augmentation = dataclasses.replace(PLAIN, crop_mode='none', hflip=0., auto_augment='rand-m10-inc1-n4')
    transform = augmentation.image_transform()
    assert any(not transform(picture).any() for _ in range(60))


def test_batchwise_is_said_of_crop_flip_cutout_and_erasing_only():
    assert dataclasses.replace(PLAIN, cutout=16, reprob=0.2, vflip=0.1).batchwise
    for changes in (dict(crop_mode='rrc'), dict(auto_augment='cifar10'), dict(color_jitter=0.4),
                    dict(grayscale_prob=0.1)):
        augmentation = dataclasses.replace(PLAIN, **changes)
        assert not augmentation.batchwise
        with pytest.raises(ValueError, match='single images'):
            augmentation.batch_augment(whole=True)
    with pytest.raises(ValueError, match='crop_mode'):
        dataclasses.replace(PLAIN, crop_mode='random')


def test_single_images_and_batches_are_cropped_by_the_same_law():
    ramp = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    picture = Image.fromarray(np.stack([ramp] * 3, -1))
    augmentation = Augmentation((3, 3, 3), (0.,) * 3, (1 / 255,) * 3, padding=1, hflip=0.5)
    single = {tuple(augmentation.image_transform()(picture)[0].flatten().tolist()) for _ in range(400)}
    batch = torch.from_numpy(ramp).expand(400, 3, 3, 3)
    whole = augmentation.batch_augment(whole=True)(batch, 0, 0).round().int()
    assert {tuple(i[0].flatten().tolist()) for i in whole} == single and len(single) == 18


def test_three_views_are_one_for_the_classifier_and_two_for_contrast(picture):
    out = three_views(dataclasses.replace(PLAIN, crop_mode='none', hflip=0.))(picture)
    assert out.shape == (3, 3, 32, 32) and out.dtype == torch.uint8
    assert torch.equal(out[0], torch.from_numpy(np.array(picture)).permute(2, 0, 1))
    assert not torch.equal(out[1], out[2])


def test_eval_transform_is_that_of_timm(picture):
    from timm.data import create_transform
    ours = eval_transform((3, 24, 24), 'bicubic', 0.875)
    theirs = create_transform((3, 24, 24), interpolation='bicubic', crop_pct=0.875, mean=MEAN, std=STD)
    out = ours(picture)
    assert torch.equal(out, ours(picture))
    torch.testing.assert_close(augment().normalize(out[None])[0], theirs(picture), rtol=1e-5, atol=1e-5)

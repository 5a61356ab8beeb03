import dataclasses
import random

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


def test_cutout_paints_black_where_asked():
    images = torch.full((50, *SIZE), 255, dtype=torch.uint8)
    mean, black = (augment(cutout=4, cutout_fill=fill)(images, 0, 0) for fill in ('mean', 'black'))
    level = augment().normalize(torch.zeros(1, *SIZE, dtype=torch.uint8))
    assert torch.equal(black, torch.where(mean == 0, level, mean))
    views = augment(cutout=4, cutout_fill='black')(torch.stack([images] * 2, 1), 0, 0)
    assert torch.equal(views[:, 0], black) and torch.equal(views[:, 1], augment().normalize(images))


def test_repeated_images_are_erased_by_their_own_probability(images):
    plain = augment().normalize(images)
    repeated = torch.arange(len(images)) % 3 == 0

    def erased(mask=repeated, **options):
        return (augment(**options)(images, 0, 0, repeated=mask) != plain).flatten(1).any(1)

    assert torch.equal(erased(repeat_reprob=1.), repeated)
    assert torch.equal(erased(reprob=1., repeat_reprob=0.), ~repeated)
    assert not erased(None, repeat_reprob=1.).any() and erased(reprob=1.).all()
    half = augment(repeat_reprob=1., seed=4)(images[::2], 0, 0, len(images), slice(None, None, 2), repeated[::2])
    assert torch.equal(half, augment(repeat_reprob=1., seed=4)(images, 0, 0, repeated=repeated)[::2])


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
    (dict(cutout_fill='white'), 'cutout_fill'),
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
    dict(auto_augment='augmix-m3-w2'), dict(auto_augment='trivial'), dict(gaussian_blur_prob=1.),
    dict(color_jitter=0.4), dict(color_jitter=(0.4, 0.4, 0.4, 0.1)),
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


def test_unknown_crop_mode_is_refused():
    with pytest.raises(ValueError, match='crop_mode'):
        dataclasses.replace(PLAIN, crop_mode='random')
    with pytest.raises(ValueError, match='at least 12 pixels a side'):
        dataclasses.replace(PLAIN, input_size=(3, 11, 32), gaussian_blur_prob=0.5)


def test_images_of_the_input_size_and_channels_are_taken():
    assert PLAIN.takes((3, 32, 32)) and not PLAIN.takes((3, 32, 40)) and not PLAIN.takes((1, 32, 32))
    resized = dataclasses.replace(PLAIN, crop_mode='rrc')
    assert resized.takes((3, 32, 40)) and not resized.takes((1, 32, 32))


def test_single_images_and_batches_are_cropped_by_the_same_law():
    ramp = np.arange(1, 10, dtype=np.uint8).reshape(3, 3)
    picture = Image.fromarray(np.stack([ramp] * 3, -1))
    augmentation = Augmentation((3, 3, 3), (0.,) * 3, (1 / 255,) * 3, padding=1, hflip=0.5)
    single = {tuple(augmentation.image_transform()(picture)[0].flatten().tolist()) for _ in range(400)}
    batch = torch.from_numpy(ramp).expand(400, 3, 3, 3)
    whole = augmentation.batch_augment(whole=True)(batch, 0, 0).round().int()
    assert {tuple(i[0].flatten().tolist()) for i in whole} == single and len(single) == 18


STRONG = [
    dict(auto_augment='cifar10', cutout=8), dict(auto_augment='imagenet'), dict(auto_augment='trivial'),
    dict(auto_augment='rand-m9-mstd0.5-inc1'), dict(auto_augment='v0', interpolation='bicubic'),
    dict(auto_augment='augmix-m3-w2'), dict(crop_mode='rrc', gaussian_blur_prob=0.5), dict(vflip=0.5),
    dict(color_jitter=(0.4, 0.4, 0.4, 0.1), color_jitter_prob=0.8, grayscale_prob=0.2),
]


@pytest.mark.parametrize('changes', STRONG)
@pytest.mark.parametrize('size', [(3, 32, 32), (1, 13, 20)])
def test_strong_augmentation_of_whole_batches(changes, size):
    channels = size[0]
    augmentation = dataclasses.replace(
        PLAIN, input_size=size, mean=MEAN[:channels], std=STD[:channels], **changes)
    images = torch.randint(0, 256, (12, *size), dtype=torch.uint8)
    before, state = images.clone(), torch.get_rng_state()
    whole = augmentation.batch_augment(3, whole=True)
    out = whole(images, 1, 5)
    assert out.shape == images.shape and out.dtype == torch.float32
    assert torch.equal(out, whole(images, 1, 5)) and not torch.equal(out, whole(images, 1, 6))
    assert torch.equal(images, before) and torch.equal(state, torch.get_rng_state())
    for rank in range(2):  # two processes share the draws of the global batch
        rows = slice(rank, None, 2)
        assert torch.equal(whole(images[rows], 1, 5, 12, rows), out[rows])
    assert torch.equal(whole(images[4:5], 1, 5, 12, slice(4, 5)), out[4:5])


def test_whole_batches_crop_and_flip_before_the_policy_and_cut_out_after_it():
    ones = torch.full((64, 3, 8, 8), 255, dtype=torch.uint8)
    plain = Augmentation((3, 8, 8), (0.5,) * 3, (0.5,) * 3, padding=2, hflip=0.)
    policy = dataclasses.replace(plain, auto_augment='cifar10', cutout=4).batch_augment(0, whole=True)
    policy.views[0][1] = lambda images, draws: 255 - images
    out = policy(ones, 0, 0)
    assert set(out.unique().tolist()) == {-1., 0., 1.}  # inverted image, Cutout, inverted black of the crop


def test_resized_crops_have_the_areas_and_ratios_of_timm():
    from timm.data.transforms import RandomResizedCropAndInterpolation

    from timm_lt.data.augment.draws import Draws
    for width, scale, ratio in ((40, (0.2, 1.0), (0.75, 4 / 3)), (90, (0.9, 1.0), (0.75, 4 / 3))):
        image = Image.new('RGB', (width, 32))
        crop = dataclasses.replace(PLAIN, crop_mode='rrc', scale=scale, ratio=ratio).batch_steps()[0]
        ours = crop.draw_boxes(Draws((0,), 20_000, slice(None)), 32, width).double()
        random.seed(0)
        theirs = torch.tensor([
            RandomResizedCropAndInterpolation.get_params(image, scale, ratio) for _ in range(4_000)]).double().T
        for mine, reference in zip(ours, theirs):
            assert abs(mine.mean() - reference.mean()) <= 5 * reference.std() / 4_000 ** 0.5
            assert abs(mine.std() - reference.std()) <= 0.05 * reference.std()
            assert abs(mine.min() - reference.min()) <= 3 and abs(mine.max() - reference.max()) <= 3


@pytest.mark.parametrize('kind,axis', [('hflip', 3), ('vflip', 2)])
def test_resized_crops_are_mirrored(images, kind, axis):
    def make(probability):
        augmentation = Augmentation(SIZE, MEAN, STD, crop_mode='rrc', hflip=0.)
        return dataclasses.replace(augmentation, **{kind: probability}).batch_augment(0, whole=True)(images, 0, 0)

    assert torch.equal(make(1.), make(0.).flip(axis))


@pytest.mark.parametrize('changes', [dict(), dict(auto_augment='cifar10', cutout=8), dict(input_size=(1, 32, 32))])
def test_three_views_of_whole_batches_are_those_of_single_images(changes):
    channels = changes.get('input_size', (3,))[0]
    augmentation = dataclasses.replace(PLAIN, mean=MEAN[:channels], std=STD[:channels], **changes)
    images = torch.randint(0, 256, (12, channels, 32, 32), dtype=torch.uint8)
    views = three_views(augmentation)
    whole = views.batch_augment(0, whole=True)
    out = whole(images, 0, 0)
    assert out.shape == (12, 3, channels, 32, 32)
    # the first view is what the augmentation makes alone, apart from Cutout, which is drawn after all views
    alone = dataclasses.replace(augmentation, cutout=0).batch_augment(0, whole=True)(images, 0, 0)
    same = out[:, 0] == alone
    assert same.all() if not augmentation.cutout else 0.7 < same.float().mean() < 1
    assert not torch.equal(out[:, 1], out[:, 2])
    for rank in range(2):
        rows = slice(rank, None, 2)
        assert torch.equal(whole(images[rows], 0, 0, 12, rows), out[rows])


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

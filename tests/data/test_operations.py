"""Operations on whole batches against Pillow's on single images."""

import numpy as np
import pytest
import torch
from PIL import Image
from timm.data import auto_augment as timm_policies
from torchvision.transforms import functional as F
from torchvision.transforms.autoaugment import InterpolationMode, _apply_op

from timm_lt.data.augment import operations
from timm_lt.data.augment.operations import Style, program_of, run_program
from timm_lt.data.augment.policies import argument
from timm_lt.data.augment.resample import blur_weights, resize_weights, weighted_sums

SIZES = [(3, 32, 32), (1, 28, 28), (3, 31, 45), (3, 2, 2)]


def to_pil(image):
    pixels = image.permute(1, 2, 0).numpy()
    return Image.fromarray(pixels if len(image) == 3 else pixels[..., 0])


def from_pil(image):
    pixels = torch.from_numpy(np.array(image))
    return pixels.permute(2, 0, 1) if pixels.ndim == 3 else pixels[None]


def pictures(channels, height, width):
    """Noise, dark noise, a ramp, one colour, two levels, a smooth image."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (6, channels, height, width), dtype=torch.uint8, generator=generator)
    images[1] = images[1] // 3 + 40
    images[2] = torch.arange(width).mul(255 // width)
    images[3] = 77
    images[4] = (images[4] > 128) * 200
    coarse = torch.rand(1, channels, 4, 4, generator=generator)
    images[5] = torch.nn.functional.interpolate(coarse, (height, width), mode='bilinear')[0] * 255
    return images


def run(images, name, number, style=operations.NEAREST_BLACK):
    return run_program(images, program_of([name] * len(images), [number] * len(images)), style)


def each(images, function):
    return torch.stack([from_pil(function(to_pil(image))) for image in images])


def most_levels(a, b):
    return int((a.int() - b.int()).abs().max())


@pytest.mark.parametrize('size', SIZES)
@pytest.mark.parametrize('name,magnitudes', [
    *((name, (-0.9, -0.3, 0.0, 0.4, 0.9)) for name in ('Brightness', 'Contrast', 'Color', 'Sharpness')),
    ('Posterize', (1, 4, 7, 8)), ('Solarize', (0.0, 100.5, 255.0)), ('AutoContrast', (0.,)), ('Equalize', (0.,)),
    ('Invert', (0.,)), ('Identity', (0.,)), ('ShearX', (0.3, -0.3, 0.99)), ('ShearY', (0.3, -0.1)),
    ('TranslateX', (5., -5., 14.5, -31.)), ('TranslateY', (14.5, -9.)), ('Rotate', (6.7, -30., 90., 135., 180., 0.)),
])
def test_operation_is_that_of_torchvision_on_pil_images(size, name, magnitudes):
    images = pictures(*size)
    for magnitude in magnitudes:
        expected = each(images, lambda image, m=magnitude: _apply_op(image, name, m, InterpolationMode.NEAREST, None))
        assert torch.equal(run(images, name, argument(name, magnitude)), expected), magnitude


@pytest.mark.parametrize('size', SIZES[:3])
@pytest.mark.parametrize('interpolation', ['nearest', 'bilinear', 'bicubic'])
@pytest.mark.parametrize('name,function,number', [
    ('ShearX', timm_policies.shear_x, 0.27), ('ShearY', timm_policies.shear_y, -0.12),
    ('TranslateX', timm_policies.translate_x_abs, 3.7), ('TranslateY', timm_policies.translate_y_abs, -7.2),
    ('Rotate', timm_policies.rotate, 23.), ('Rotate', timm_policies.rotate, -11.3),
])
def test_geometric_operation_is_that_of_timm(size, interpolation, name, function, number):
    images, fill = pictures(*size), (10, 200, 90) if size[0] == 3 else (10, 10, 10)
    resample = Image.Resampling[interpolation.upper()]
    colour = fill if size[0] == 3 else fill[0]
    expected = each(images, lambda image: function(image, number, resample=resample, fillcolor=colour))
    out = run(images, name, number, Style(interpolation, fill))
    assert most_levels(out, expected) <= 1 and (out != expected).float().mean() < 0.01


@pytest.mark.parametrize('turn', [-0.5, -0.1, 0.05, 0.3, 0.5])
def test_hue_is_that_of_torchvision_on_pil_images(turn):
    for size in SIZES:
        images = pictures(*size)
        assert most_levels(run(images, 'Hue', turn), each(images, lambda image: F.adjust_hue(image, turn))) <= 1


def test_grey_and_solarize_add_are_those_of_the_pil_path():
    images = pictures(*SIZES[0])
    assert torch.equal(run(images, 'Grey', 0.), each(images, lambda image: F.rgb_to_grayscale(image, 3)))
    for add in (0, 70, 110):
        expected = each(images, lambda image, n=add: timm_policies.solarize_add(image, n))
        assert torch.equal(run(images, 'SolarizeAdd', add), expected)


def test_blur_is_that_of_torchvision():
    for size in SIZES[:3]:
        images = pictures(*size)
        for sigma in (0.1, 0.7, 2.0):
            assert most_levels(run(images, 'Blur', sigma), F.gaussian_blur(images, [23, 23], [sigma, sigma])) <= 1


@pytest.mark.parametrize('interpolation', ['bilinear', 'bicubic'])
def test_resized_window_is_that_of_pil(interpolation):
    images = pictures(3, 31, 45)
    for (top, left, h, w), out in (((3, 5, 20, 31), (32, 32)), ((0, 0, 31, 45), (31, 45)), ((7, 2, 24, 40), (9, 11))):
        rows, columns = (
            resize_weights(torch.full((6,), start), torch.full((6,), length), new, size, interpolation)
            for start, length, new, size in ((top, h, out[0], 31), (left, w, out[1], 45)))
        expected = each(images, lambda image, box=(left, top, left + w, top + h), o=out: image.crop(box).resize(
            o[::-1], Image.Resampling[interpolation.upper()]))
        assert most_levels(weighted_sums(images, rows, columns, round_between=True), expected) <= 1


def test_blur_weights_mirror_the_border():
    weights = blur_weights(torch.tensor([2.0]), 12, 23)
    torch.testing.assert_close(weights.sum(2), torch.ones(1, 12))


@pytest.mark.parametrize('chunk', [1, 10_000])
def test_each_image_has_its_own_program(monkeypatch, chunk):
    monkeypatch.setattr(operations, 'CHUNK', chunk)  # groups are split, the result stays
    names = [name for name in operations.OPERATIONS if name != 'Blur']
    images = pictures(3, 16, 16)[:1].expand(len(names), -1, -1, -1)
    numbers = [0.3 if name == 'Hue' else 4. for name in names]
    out = run_program(images, program_of(names, numbers))
    for image, name, number in zip(out, names, numbers):
        assert torch.equal(image, run(images[:1], name, number)[0]), name
    assert torch.equal(images[0], pictures(3, 16, 16)[0])


def test_program_runs_in_order():
    images = pictures(3, 16, 16)
    first, second = program_of(['Invert'] * 6, [0.] * 6), program_of(['TranslateX'] * 6, [4.] * 6)
    both = operations.Program(torch.cat([first.codes, second.codes]), torch.cat([first.arguments, second.arguments]))
    assert torch.equal(run_program(images, both), run_program(run_program(images, first), second))
    assert not torch.equal(run_program(images, both), run_program(run_program(images, second), first))

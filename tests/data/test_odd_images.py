"""Images as people have them: levels are kept, orientation is applied, every unreadable file is named."""

import io
import struct
import warnings
import zlib

import numpy as np
import pytest
import torch
from image_files import make_folder, save_image
from PIL import Image, PngImagePlugin
from torch.utils.data import ConcatDataset, Dataset, Subset
from torchvision.datasets import ImageFolder

from timm_lt.data import (
    Augmentation,
    ImageReadError,
    ImageSubset,
    InMemoryImages,
    ListFileDataset,
    convert_image,
    create_dataset,
    drop_unreadable,
    eval_transform,
    find_unreadable,
    open_image,
    read_sample,
)

RAMP = np.linspace(0, 65535, 64).reshape(8, 8)


def levels(image):
    return np.asarray(image).reshape(8, 8, -1)[..., 0].astype(float)


class Users(Dataset):
    """A dataset of a user, which opens its files as Pillow gives them."""

    def __init__(self, path, transform=None):
        self.path, self.transform, self.targets = path, transform, [0]

    def __len__(self):
        return 1

    def __getitem__(self, index):
        image = Image.open(self.path)
        return image if self.transform is None else self.transform(image), 0


def folder(path):
    return create_dataset('folder', path.parents[1])


def listed(path):
    file = path.parents[1] / 'list.txt'
    file.write_text(f'{path.parent.name}/{path.name} 0\n')
    return ListFileDataset(file, path.parents[1])


def timm_folder(path):
    import timm.data
    return ImageSubset(timm.data.create_dataset('', root=str(path.parents[1])))


def torchvision_folder(path):
    return ImageSubset(ImageFolder(path.parents[1]))


def users(path):
    return ImageSubset(Users(path))


def hub(path):
    datasets = pytest.importorskip('datasets')
    features = datasets.Features(image=datasets.Image(), label=datasets.ClassLabel(names=['x']))
    rows = {'image': [{'bytes': path.read_bytes(), 'path': None}], 'label': [0]}
    target = path.parents[1] / 'hub' / 'train.parquet'
    target.parent.mkdir()
    datasets.Dataset.from_dict(rows, features=features).to_parquet(target)
    return create_dataset(f'hfds/{target.parent}', path.parents[1] / 'cache')


READERS = [folder, listed, timm_folder, torchvision_folder, users, hub]


@pytest.mark.parametrize('reader', READERS, ids=lambda r: r.__name__)
def test_16_bit_levels_are_kept_by_every_reader(tmp_path, reader):
    path = tmp_path / 'd' / 'a' / '0.png'
    path.parent.mkdir(parents=True)
    Image.fromarray(RAMP.astype(np.uint16)).save(path)
    data = reader(path)
    assert np.abs(levels(data[0][0]) - RAMP / 257).max() <= 0.5
    assert np.abs(levels(InMemoryImages.from_dataset(data)[0][0]) - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize('reader', READERS, ids=lambda r: r.__name__)
@pytest.mark.parametrize('train', [True, False])
def test_levels_and_orientation_are_kept_through_the_transforms(tmp_path, reader, train):
    path = tmp_path / 'd' / 'a' / '0.png'
    path.parent.mkdir(parents=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(RAMP.astype(np.uint16)).save(path, exif=exif)
    data = reader(path)
    augmentation = Augmentation((3, 8, 8), (0.5,) * 3, (0.5,) * 3, crop_mode='none', hflip=0.)
    data.transform = augmentation.image_transform() if train else eval_transform((3, 8, 8), crop_pct=1.)
    pixels = data[0][0]
    expected = np.rot90(RAMP, -1) / 257
    assert pixels.shape == (3, 8, 8) and np.abs(pixels[0].numpy() - expected).max() <= 0.5


@pytest.mark.parametrize('suffix,array', [
    ('png', RAMP.astype(np.uint16)), ('tif', RAMP.astype(np.uint16)), ('tif', RAMP.astype('>u2')),
    ('tif', RAMP.astype(np.int32)), ('tif', (RAMP / 65535).astype(np.float32)), ('pgm', RAMP.astype(np.uint16)),
    ('jp2', RAMP.astype(np.uint16)),
], ids=lambda v: v if isinstance(v, str) else str(v.dtype))
def test_levels_of_more_than_8_bits_follow_the_rule(tmp_path, suffix, array):
    path = tmp_path / f'0.{suffix}'
    if array.dtype.byteorder == '>':
        Image.frombytes('I;16B', (8, 8), array.tobytes()).save(path)
    else:
        Image.fromarray(array).save(path)
    for mode in ('RGB', 'L', None):
        image = open_image(path, mode)
        assert image.mode == (mode or 'L') and np.abs(levels(image) - RAMP / 257).max() <= 0.5


@pytest.mark.parametrize('array,match', [
    (np.full((2, 2), 70000, np.int32), "mode 'I' holds values from 70000 to 70000, but only 16-bit"),
    (np.full((2, 2), -1, np.int32), "mode 'I' holds values from -1"),
    (np.full((2, 2), 255, np.float32), r"mode 'F' \(floating point\) holds values from 255 to 255"),
    (np.full((2, 2), np.nan, np.float32), "mode 'F'"),
])
def test_levels_without_a_rule_are_errors_that_name_the_mode(tmp_path, array, match):
    path = tmp_path / 'a' / '0.tif'
    path.parent.mkdir()
    Image.fromarray(array).save(path)
    with pytest.raises(ImageReadError, match=rf'cannot read .*a/0\.tif: {match}'):
        create_dataset('folder', tmp_path)[0]


def picture(mode):
    """Red, half transparent where the mode can be."""
    rgba = Image.new('RGBA', (4, 4), (200, 0, 0, 128))
    return {
        'P with transparency': lambda: rgba.quantize(4), '1': lambda: Image.new('1', (4, 4), 1),
        'LA': lambda: rgba.convert('LA'), 'RGBA': lambda: rgba, 'CMYK': lambda: rgba.convert('RGB').convert('CMYK'),
        'P': lambda: rgba.convert('RGB').convert('P'), 'YCbCr': lambda: rgba.convert('RGB').convert('YCbCr'),
    }[mode]()


@pytest.mark.parametrize('mode,colour', [
    ('P with transparency', (200, 0, 0)), ('LA', (60, 60, 60)), ('RGBA', (200, 0, 0)), ('CMYK', (200, 0, 0)),
    ('P', (200, 0, 0)), ('1', (255, 255, 255)), ('YCbCr', (200, 0, 0)),
])
def test_other_modes_become_rgb_and_transparency_is_ignored(tmp_path, mode, colour):
    path = tmp_path / ('0.tif' if mode in ('CMYK', 'YCbCr') else '0.png')
    picture(mode).save(path)
    with warnings.catch_warnings():
        warnings.simplefilter('error')
        image = open_image(path)
    assert image.mode == 'RGB'
    assert np.abs(np.asarray(image).astype(int) - colour).max() <= (6 if mode in ('P', 'YCbCr') else 1)


@pytest.mark.parametrize('orientation', range(1, 9))
@pytest.mark.parametrize('suffix', ['png', 'jpg', 'tif', 'webp'])
def test_exif_orientation_is_applied_once(tmp_path, orientation, suffix):
    from PIL import ImageOps
    path = tmp_path / f'0.{suffix}'
    exif = Image.Exif()
    exif[0x0112] = orientation
    pixels = np.zeros((8, 16, 3), np.uint8)
    pixels[:4, :8] = 255
    Image.fromarray(pixels).save(path, exif=exif, **({'lossless': True} if suffix == 'webp' else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert('RGB'))
    image = open_image(path)
    assert np.array_equal(np.asarray(image), expected)
    assert convert_image(image) is image  # nothing is left to apply


def test_damaged_exif_block_does_not_lose_the_image(tmp_path):
    Image.new('RGB', (8, 8), (9, 9, 9)).save(tmp_path / '0.png', exif=b'Exif\x00\x00MM\x00*\xff\xff\xff\xff')
    assert open_image(tmp_path / '0.png').getpixel((0, 0)) == (9, 9, 9)


def test_first_frame_of_several_is_read(tmp_path):
    frames = [Image.new('RGB', (4, 4), (level,) * 3) for level in (50, 250)]
    for name in ('a.gif', 'a.tif', 'a.webp', 'a.png'):
        options = {'lossless': True} if name == 'a.webp' else {}
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:], **options)
        assert open_image(tmp_path / name).getpixel((0, 0)) == (50, 50, 50), name


# unreadable files


def large_text():
    text, file = PngImagePlugin.PngInfo(), io.BytesIO()
    text.add_text('note', 'x' * (2 * 2 ** 20), zip=True)
    Image.new('RGB', (8, 8)).save(file, 'png', pnginfo=text)
    return file.getvalue()


def png_of(*chunks):
    parts = [b'\x89PNG\r\n\x1a\n']
    for kind, data in chunks:
        parts.append(struct.pack('>I', len(data)) + kind + data + struct.pack('>I', zlib.crc32(kind + data)))
    return b''.join(parts)


def whole(suffix='png'):
    file = io.BytesIO()
    Image.new('RGB', (64, 64), (1, 2, 3)).save(file, suffix)
    return file.getvalue()


DAMAGED = {
    'empty': b'', 'no image': b'not an image', 'truncated png': whole()[:90], 'truncated jpeg': whole('jpeg')[:400],
    'text larger than the limit': large_text(),
    'wrong checksum': whole().replace(b'IDAT', b'IDAX'),
    'bomb': png_of((b'IHDR', struct.pack('>IIBBBBB', 200000, 200000, 8, 2, 0, 0, 0)), (b'IDAT', b''), (b'IEND', b'')),
    'short header': png_of((b'IHDR', b'\0\0'), (b'IEND', b'')),
    'short tiff': b'II*\x00\x08\x00\x00\x00\xff\xff',
}


@pytest.mark.parametrize('kind', DAMAGED)
@pytest.mark.parametrize('reader', [folder, listed, torchvision_folder, users, hub], ids=lambda r: r.__name__)
def test_damaged_file_is_named_for_whatever_reason(tmp_path, kind, reader):
    path = tmp_path / 'd' / 'a' / 'odd.png'
    path.parent.mkdir(parents=True)
    path.write_bytes(DAMAGED[kind])
    with pytest.raises(ImageReadError, match={'users': 'image 0 of Users', 'hub': 'row 0'}.get(
            reader.__name__, r'a/odd\.png')):
        reader(path)[0]


@pytest.mark.parametrize('error', [
    ValueError, SyntaxError, OSError, EOFError, MemoryError, struct.error, KeyError, RecursionError, AssertionError,
    NotImplementedError, Image.DecompressionBombError, Image.DecompressionBombWarning, zlib.error, UnicodeDecodeError,
], ids=lambda e: e.__name__)
def test_any_error_of_pillow_is_named_and_can_be_skipped(tmp_path, error, monkeypatch, caplog):
    data = create_dataset('folder', make_folder(tmp_path, {'a': 2, 'b': 1}))
    opened = Image.open

    def refuse(file, *args, **kwargs):
        if str(file).endswith('a/1.png'):
            raise error('utf-8', b'', 0, 1, 'why') if error is UnicodeDecodeError else error('why')
        return opened(file, *args, **kwargs)

    monkeypatch.setattr(Image, 'open', refuse)
    with pytest.raises(ImageReadError, match=r'1 of 3 images cannot be read: cannot read .*a/1\.png: .*why'):
        drop_unreadable(data, 'error')
    with pytest.raises(ImageReadError, match=r'a/1\.png'):
        InMemoryImages.from_dataset(data)
    assert drop_unreadable(data, 'skip').targets.tolist() == [0, 1] and 'a/1.png' in caplog.text
    assert InMemoryImages.from_dataset(data, bad_images='skip').targets.tolist() == [0, 1]


def test_missing_file_behind_a_broken_link_is_named(tmp_path):
    make_folder(tmp_path, {'a': 1})
    (tmp_path / 'a' / 'gone.png').symlink_to(tmp_path / 'nothing')
    bad = find_unreadable(create_dataset('folder', tmp_path))
    assert list(bad) == [1] and 'gone.png' in bad[1] and 'No such file' in bad[1]


def test_error_of_a_transform_is_not_blamed_on_the_image(tmp_path):
    save_image(tmp_path / 'a' / '0.png')

    def fail(image):
        raise ValueError('my transform')

    for data in (create_dataset('folder', tmp_path), ImageFolder(tmp_path), Users(tmp_path / 'a' / '0.png')):
        data.transform = fail
        with pytest.raises(ValueError, match='^my transform$'):
            read_sample(data, 0)


def test_subsets_and_concatenations_are_read_like_their_datasets(tmp_path):
    import timm.data
    make_folder(tmp_path, {'a': 3})
    (tmp_path / 'a' / '1.png').write_bytes(b'')
    data = timm.data.create_dataset('', root=str(tmp_path))  # timm alone gives image 2 for image 1
    for joined, index in ((Subset(data, [2, 1]), 1), (ConcatDataset([Subset(data, [0]), data]), 2)):
        with pytest.raises(ImageReadError, match=r'a/1\.png'):
            read_sample(joined, index)


def test_colours_are_those_of_pillow_for_common_files(tmp_path):
    pixels = torch.randint(0, 256, (16, 16, 3), generator=torch.Generator().manual_seed(0)).numpy().astype(np.uint8)
    for name in ('0.png', '0.jpg', '0.webp', '0.bmp'):
        Image.fromarray(pixels).save(tmp_path / name)
        assert np.array_equal(open_image(tmp_path / name), Image.open(tmp_path / name).convert('RGB'))

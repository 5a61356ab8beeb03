"""The check of all images before training, and its memory."""

import logging
import os

import pytest
from image_files import make_folder

from timm_lt.data import ImageReadError, create_dataset, drop_unreadable
from timm_lt.data import unreadable as room
from timm_lt.data.checked import CheckedFiles


@pytest.fixture
def images(tmp_path):
    return create_dataset('folder', make_folder(tmp_path / 'images', {'a': 3, 'b': 2}))


@pytest.fixture
def read(monkeypatch):
    """Indices that are decoded."""
    indices = []
    original = room.read_sample
    monkeypatch.setattr(room, 'read_sample', lambda dataset, i: (indices.append(i), original(dataset, i))[1])
    return indices


def test_unchanged_files_are_read_once_and_changed_ones_again(images, read, caplog):
    caplog.set_level(logging.INFO)
    assert drop_unreadable(images) is images and read == [0, 1, 2, 3, 4]
    assert 'checking that 5 images can be read' in caplog.text and '--no-check-images' in caplog.text
    caplog.clear()
    drop_unreadable(images)
    assert len(read) == 5 and caplog.text == ''
    os.utime(images.filename(1, absolute=True), (1, 1))
    drop_unreadable(images)
    assert read[5:] == [1]


def test_an_unreadable_file_is_not_remembered_and_named_at_its_own_place(images, read):
    drop_unreadable(images)
    bad = images.filename(3, absolute=True)
    with open(bad, 'wb') as f:
        f.write(b'no image')
    for _ in range(2):
        with pytest.raises(ImageReadError, match=os.path.basename(bad)):
            drop_unreadable(images)
    assert read[5:] == [3, 3]
    assert len(drop_unreadable(images, 'skip')) == 4


def test_parts_below_one_folder_share_the_memory_and_damage_costs_time_only(images):
    files = [images.filename(i, absolute=True) for i in range(5)]
    CheckedFiles(files).remember(range(2))
    CheckedFiles(files).remember(range(2, 5))
    assert CheckedFiles(files).unknown() == []
    CheckedFiles(files).memory.write_bytes(b'odd')
    assert len(CheckedFiles(files).unknown()) == 5
    assert CheckedFiles(['image 0 of Made', 'image 1 of Made']).unknown() == [0, 1]

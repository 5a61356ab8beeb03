import os
from pathlib import Path

os.environ.setdefault('HF_HUB_OFFLINE', '1')  # read once, when the Hub's client is imported

import timm_lt  # noqa: F401  before torch: its threads then sleep while they wait, those of child processes too

# isort: split

import pytest
import torch
from paths import GOLDEN

torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture(autouse=True, scope='session')
def own_cache(tmp_path_factory):
    """The memory of readable images is that of the tests, not that of the user."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr('timm_lt.data.checked.cache_folder', lambda: tmp_path_factory.getbasetemp() / 'checked_images')
        yield


@pytest.fixture
def golden_dir() -> Path:
    return GOLDEN

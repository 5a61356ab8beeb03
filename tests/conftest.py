import os
from pathlib import Path

import pytest
import torch

os.environ.setdefault('HF_HUB_OFFLINE', '1')
torch.set_num_threads(1)

GOLDEN = Path(os.environ.get('TIMM_LT_GOLDEN') or Path(__file__).parent / 'data' / 'golden')


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def golden_dir() -> Path:
    return GOLDEN

"""Where things are, whatever folder a test lies in."""

import os
from pathlib import Path

ROOT = Path(__file__).parents[2]
HELPERS = Path(__file__).parent
SCRIPT = ROOT / 'train_lt.py'
GOLDEN = Path(os.environ.get('TIMM_LT_GOLDEN') or ROOT / 'tests' / 'golden' / 'numbers')

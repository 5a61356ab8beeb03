"""Numbers from the published implementations, see the module of each file for what is compared.

Every ``X*.npz`` of the golden folder (``TIMM_LT_GOLDEN``, default the copy in ``tests/golden/numbers``) is checked by
``check_X.py``. A file without a check, or a key that its check leaves unread, fails unless it is named here or skipped
there by name.
"""

import importlib
from pathlib import Path

import pytest
from golden.harness import Golden
from paths import GOLDEN

# name: tolerance of the file, as a share of the largest entry of each array
TOLERANCES = {
    'losses': 1e-10, 'balscl': 1e-10, 'gala': 1e-9, 'prediction_rebalancing': 1e-10, 'sam_trajectories': 1e-9,
    'cc_sam_stage1': 1e-9, 'cc_sam_stage2': 1e-9, 'gsa_paper': 1e-9, 'gsa_released': 1e-9, 'gkp_penalty': 1e-10,
    'fisher_diagonal': 1e-10, 'feature_quality': 1e-10, 'class_counts': 0.0, 'shot_accuracy': 1e-12,
    'openset_f_measure': 1e-11,
}
# name: why no check exists yet
NOT_BUILT: dict[str, str] = {
}

FILES = sorted(Path(GOLDEN).glob('*.npz'))


def kind_of(path: Path) -> str:
    kinds = [k for k in TOLERANCES if path.stem.startswith(k)]
    assert kinds, f'{path.name}: no golden file of this name is known, see TOLERANCES'
    return max(kinds, key=len)


def test_golden_folder_is_not_empty():
    assert FILES, f'no .npz in {GOLDEN}'


@pytest.mark.parametrize('path', FILES, ids=lambda p: p.stem)
def test_published_numbers_are_reproduced(path):
    kind = kind_of(path)
    if kind in NOT_BUILT:
        pytest.skip(NOT_BUILT[kind])
    golden = Golden(path, TOLERANCES[kind])
    importlib.import_module(f'golden.check_{kind}').check(golden)
    unread = sorted(set(golden.arrays) - golden.used)
    assert not unread, f'{path.name}: no check reads {unread}'

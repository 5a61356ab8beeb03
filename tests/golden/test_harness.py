"""The comparison that all golden checks rest on."""

import numpy as np
import pytest
import torch
from golden.harness import Golden


@pytest.mark.parametrize('value, message', [
    ([1.0, np.inf, -np.inf, np.nan], None),
    ([1.0 + 1e-12, np.inf, -np.inf, np.nan], None),
    ([1.1, np.inf, -np.inf, np.nan], 'off by'),
    ([1.0, np.inf, np.inf, np.nan], 'infinities of another sign'),
    ([1.0, np.inf, -np.inf, np.inf], 'other entries are NaN'),
    ([1.0, 1.0, -np.inf, np.nan], 'other entries are finite'),
])
def test_check_accepts_the_stored_numbers_alone(tmp_path, value, message):
    path = tmp_path / 'numbers.npz'
    np.savez(path, key=np.array([1.0, np.inf, -np.inf, np.nan]))
    golden = Golden(path, tolerance=1e-9)
    if message is None:
        golden.check('key', torch.tensor(value, dtype=torch.float64))
    else:
        with pytest.raises(AssertionError, match=message):
            golden.check('key', torch.tensor(value, dtype=torch.float64))

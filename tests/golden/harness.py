"""Reads golden files, compares within their tolerance, and remembers which keys a check has used."""

import numpy as np
import torch


class Golden:
    """One golden ``.npz``; ``golden['key']`` gives a tensor (or a Python scalar) and marks the key as used.

    Args:
        path: The file.
        tolerance: Largest difference allowed, as a share of the largest entry of the reference array.
    """

    def __init__(self, path, tolerance):
        with np.load(path, allow_pickle=False) as data:
            self.arrays = {key: data[key] for key in data.files}
        self.path = path
        self.tolerance = tolerance
        self.used = set()

    def keys(self, prefix='', suffix=''):
        return [k for k in self.arrays if k.startswith(prefix) and k.endswith(suffix)]

    def __contains__(self, key):
        return key in self.arrays

    def __getitem__(self, key):
        self.used.add(key)
        array = self.arrays[key]
        return array.item() if array.ndim == 0 else torch.from_numpy(array.copy())

    def skip(self, *keys):
        """Keys that are not checked; say why beside the call."""
        for key in keys:
            assert key in self.arrays, f'{self.path.name} has no key {key!r} to skip'
        self.used.update(keys)

    def check(self, key, value):
        """Assert that ``value`` equals the stored array: integers and masks exactly, floats within the tolerance."""
        self.used.add(key)
        reference = torch.from_numpy(self.arrays[key].copy())  # a Python scalar would become float32
        value = torch.as_tensor(value).detach()
        where = f'{self.path.name}: {key}'
        assert value.shape == reference.shape, f'{where}: shape {tuple(value.shape)}, not {tuple(reference.shape)}'
        if not reference.is_floating_point():
            assert torch.equal(value.to(reference.dtype), reference), where
            return
        value = value.to(torch.float64)
        finite = torch.isfinite(reference)
        assert torch.equal(finite, torch.isfinite(value)), f'{where}: other entries are finite'
        assert torch.equal(torch.isnan(reference), torch.isnan(value)), f'{where}: other entries are NaN'
        infinite = torch.isinf(reference)
        assert torch.equal(reference[infinite].double(), value[infinite]), f'{where}: infinities of another sign'
        if not bool(finite.any()):
            return
        difference = (value - reference)[finite].abs().max().item()
        largest = reference[finite].abs().max().item()
        assert difference <= self.tolerance * largest, f'{where}: off by {difference:.3g}, largest entry {largest:.3g}'

"""Freed memory stays where it is."""

import platform
import subprocess
import sys

import pytest

CODE = '''
import resource, torch
from timm_lt.training.allocator import keep_freed_memory
assert keep_freed_memory()
faults = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for _ in range(6):
    before = faults()
    torch.ones(2**24)  # 64 MB
    print(faults() - before)
'''


@pytest.mark.skipif(platform.libc_ver()[0] != 'glibc', reason='of glibc')
def test_freed_memory_stays_in_the_process():
    result = subprocess.run([sys.executable, '-c', CODE], capture_output=True, text=True, check=True)
    faults = list(map(int, result.stdout.split()))
    assert max(faults[-3:]) < faults[0] / 4, result.stdout

"""How threads of OpenMP wait for work: set before torch is loaded, or not at all."""

import os
import sys

# each decides the same thing; of them the user has set, none is overruled
SETTINGS = ('OMP_WAIT_POLICY', 'GOMP_SPINCOUNT', 'KMP_BLOCKTIME', 'KMP_LIBRARY')


def wait_passively() -> bool:
    """Have idle threads of torch sleep instead of spin, in this process and those that it starts.

    A spinning thread holds a core that the thread it waits for may need. Times of a step of ``resnet20_cifar`` on two
    threads are medians, measured in turns. On two cores that other processes use too (batch 64), a step takes 0.44 s
    with this policy. It takes 0.58 s with 1,000 spins, 1.2 s with 10,000, and 6.4 s with libgomp's default. On idle
    cores (batch 128) it takes 0.308 s with this policy. It takes 0.295 s with 3,000 spins and 0.292 s with the default.

    OpenMP reads its environment when it is loaded, so this must run before ``import torch``. ``import timm_lt`` calls
    it first of all, because the script and the commands load torch through it.

    Returns:
        Whether the policy was set: not where torch is loaded already, or the user has set one of :data:`SETTINGS`.
    """
    if 'torch' in sys.modules or any(name in os.environ for name in SETTINGS):
        return False
    os.environ['OMP_WAIT_POLICY'] = 'PASSIVE'  # libgomp spins 0 times; libomp and libiomp5 sleep at once
    return True

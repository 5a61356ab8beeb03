"""Idle threads of torch sleep instead of spin, in everything that the package starts."""

import os
import re
import subprocess
import sys

import pytest
from paths import ROOT, SCRIPT

from timm_lt import _threads


def spin_count(*command, **environment):
    """How often a waiting thread spins, as OpenMP itself says when a started process loads it."""
    inherited = {k: v for k, v in os.environ.items() if k not in _threads.SETTINGS}
    process = subprocess.run(
        [sys.executable, *command], env=inherited | {'OMP_DISPLAY_ENV': 'VERBOSE'} | environment, cwd=ROOT, text=True,
        capture_output=True, check=True)
    counts = re.findall(r"GOMP_SPINCOUNT = '(\w+)'", process.stderr)
    if not counts:
        pytest.skip('torch was built with another OpenMP than libgomp')
    return set(counts)


@pytest.mark.parametrize('command', [[str(SCRIPT), '--help'], ['-m', 'timm_lt.evaluate', '--help']])
def test_the_commands_set_the_policy_before_torch_is_loaded(command):
    assert spin_count(*command) == {'0'}


def test_the_policy_of_the_user_stays():
    assert spin_count('-m', 'timm_lt.hub', '--help', GOMP_SPINCOUNT='7') == {'7'}


def test_nothing_is_set_where_it_is_too_late_or_decided(monkeypatch):
    for name in _threads.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    assert not _threads.wait_passively() and 'OMP_WAIT_POLICY' not in os.environ  # torch is loaded here
    monkeypatch.delitem(sys.modules, 'torch')
    monkeypatch.setenv('KMP_BLOCKTIME', '200')
    assert not _threads.wait_passively() and 'OMP_WAIT_POLICY' not in os.environ
    monkeypatch.delenv('KMP_BLOCKTIME')
    monkeypatch.setenv('OMP_WAIT_POLICY', 'ACTIVE')
    assert not _threads.wait_passively() and os.environ['OMP_WAIT_POLICY'] == 'ACTIVE'
    monkeypatch.delenv('OMP_WAIT_POLICY')
    assert _threads.wait_passively() and os.environ['OMP_WAIT_POLICY'] == 'PASSIVE'


def test_the_tests_and_their_child_processes_wait_so_too():
    assert any(name in os.environ for name in _threads.SETTINGS)

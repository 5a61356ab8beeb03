"""Fixtures of the tests that write reports."""

import pytest

from timm_lt.evaluate import _html


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Pictures of few pixels, because tests read no detail."""
    monkeypatch.setattr(_html, 'DPI', 40)

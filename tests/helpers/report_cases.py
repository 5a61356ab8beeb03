"""Fixtures of the tests that write reports."""

import pytest

from timm_lt.evaluate.reports.plots import style


@pytest.fixture(autouse=True)
def coarse_pictures(monkeypatch):
    """Pictures of few pixels, because tests read no detail."""
    monkeypatch.setattr(style, 'DPI', 40)

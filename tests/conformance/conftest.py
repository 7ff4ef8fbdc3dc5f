"""An empty folder to run a toy's recipe in."""

from __future__ import annotations

import pytest

from tests.training.tiny_runs import forget_run


@pytest.fixture
def toy_place(tmp_path, monkeypatch):
    """Return a fresh current folder with a cache of its own."""
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    forget_run()
    yield tmp_path
    forget_run()

"""A workplace with tiny data, and one finished run that many tests look at."""

from __future__ import annotations

import signal
import sys

import pytest

from tests.training.tiny_runs import forget_run, only_run, run, write_workplace


@pytest.fixture(autouse=True)
def _own_process():
    # Lightning leaves the seed in the environment and, after Ctrl-C, a dead SIGINT handler.
    handler = signal.getsignal(signal.SIGINT)
    forget_run()
    yield
    forget_run()
    signal.signal(signal.SIGINT, handler)
    if "wandb" in sys.modules:
        # It keeps the first test's folder otherwise.
        sys.modules["wandb"].finish()
        sys.modules["wandb"].teardown()


@pytest.fixture
def workplace(tmp_path, monkeypatch):
    """Return a fresh current folder that holds tiny.yaml, its images and an empty cache."""
    write_workplace(tmp_path)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def finished(tmp_path_factory):
    """Return (workplace, run folder) of one run of tiny.yaml; nothing may change it."""
    folder = tmp_path_factory.mktemp("finished")
    write_workplace(folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert run() == 0
        return folder, only_run(folder / "runs")

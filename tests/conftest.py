"""What every room's tests share: a fixed seed, one thread, and a tiny backbone."""

from __future__ import annotations

import gc
import os
from collections import Counter
from typing import TYPE_CHECKING

# Before torch is imported, and for every process that a test starts: those of pytest itself have the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from _pytest.doctest import DoctestModule

from medsam_tune.heap import keep_heap

# torch is imported where it is used: xdist's own process, which starts the workers, never needs it.
if TYPE_CHECKING:
    from medsam_tune.backbone import SamBackbone


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    # Examples stand in the package; looking for some in every file of the tests takes each worker seconds.
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


def pytest_configure(config):
    # xdist would give out first the files with the most tests, whatever these take.
    config.option.loadscopereorder = False


def pytest_collection_modifyitems(items):
    # Files with slow tests come first, so that at the end no worker waits for another one's long file.
    if "PYTEST_XDIST_WORKER" in os.environ:
        slow = Counter(item.path for item in items if item.get_closest_marker("slow"))
        items.sort(key=lambda item: -slow[item.path])


def pytest_collection_finish():
    # Off since tests/__init__.py. The threshold is that of a command (medsam_tune/cli): Python's own costs each run 3 %.
    gc.freeze()
    gc.set_threshold(50_000)
    gc.enable()
    keep_heap()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
    import torch

    # The tiny networks are slower on several threads, and parallel runs would fight for cores.
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(autouse=True, scope="session")
def _no_flush():
    # Every small file waits for the disk otherwise, for seconds where it is busy; no test cuts the power.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)
        yield


@pytest.fixture(autouse=True)
def _seeded():
    import torch

    torch.manual_seed(0)


@pytest.fixture
def tiny_backbone() -> SamBackbone:
    """A fresh backbone with random weights: side 64, grid 4, 32 channels."""
    from medsam_tune.backbone import SamBackbone

    return SamBackbone("random_tiny")

"""What every room's tests share: a fixed seed, one thread, and a tiny backbone."""

from __future__ import annotations

import gc
import os

# Before torch is imported, and for every process that a test starts: those of pytest itself have the cores already.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch
from _pytest.doctest import DoctestModule

from medsam_tune.backbone import SamBackbone


@pytest.hookimpl(wrapper=True)
def pytest_collect_file():
    # Examples stand in the package; looking for some in every file of the tests takes each worker seconds.
    return [found for found in (yield) if not isinstance(found, DoctestModule)]


def pytest_collection_finish():
    # Off since tests/__init__.py.
    gc.freeze()
    gc.enable()


@pytest.fixture(autouse=True, scope="session")
def _one_thread():
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
    torch.manual_seed(0)


@pytest.fixture
def tiny_backbone() -> SamBackbone:
    """A fresh backbone with random weights: side 64, grid 4, 32 channels."""
    return SamBackbone("random_tiny")

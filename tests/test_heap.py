"""Large buffers stay in the heap of a process that asked for it, and only while a network runs."""

import os
import subprocess
import sys

import pytest

from medsam_tune.heap import keep_heap

# Prints the page faults of making and freeing a large buffer, written to, eight times: before, within and after. What the heap
# already has free serves any buffer, so the last ones are larger than that.
PROGRAM = """
import os, resource, sys
import numpy as np
from medsam_tune.heap import keep_heap, large_buffers_kept

def faults(mebibytes=64):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        np.ones(mebibytes << 17)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def within():
    with large_buffers_kept(), large_buffers_kept():
        np.ones(64 << 17)
    with large_buffers_kept():
        with large_buffers_kept():
            pass
        return faults()

print(within() if sys.argv[1] == "library" else (keep_heap(), faults(), within(), faults(256)))
"""
PAGES = 8 * (64 << 20) // os.sysconf("SC_PAGE_SIZE")
needs_glibc = pytest.mark.skipif("glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="the C library is not glibc")


def _run(word, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_", "LD_PRELOAD"))}
    asked = [sys.executable, "-c", PROGRAM, word]
    return eval(subprocess.run(asked, env={**clean, **environment}, capture_output=True, text=True, check=True).stdout)


@needs_glibc
def test_a_commands_network_gets_its_pages_once_and_other_large_buffers_are_given_back():
    kept, before, within, after = _run("command")
    assert kept
    # Pages may come in larger pieces than one, never in more.
    assert before > 0
    assert within < before / 100
    assert after > before / 2


@needs_glibc
def test_a_library_leaves_its_users_process_alone():
    assert _run("library") > PAGES / 1024


def test_settings_of_the_environment_are_kept(monkeypatch):
    monkeypatch.setenv("MALLOC_TRIM_THRESHOLD_", "1000000")
    assert not keep_heap()

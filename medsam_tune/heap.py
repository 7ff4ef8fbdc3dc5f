"""Freed buffers of a network stay with the process: a CPU spends up to a third of an encoder pass on fresh pages otherwise.

glibc hands every large buffer back to the system when it is freed, and the system clears each page before the next one gets it.
A network asks for the same sizes again and again. Images and masks at their original size do not, and would leave holes
everywhere, so only what runs within ``large_buffers_kept`` takes large buffers from the heap.

Source: mallopt(3), https://man7.org/linux/man-pages/man3/mallopt.3.html; the numbers of its parameters are in malloc.h.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

# Parameters of mallopt.
_TRIM_THRESHOLD: Final = -1
_MMAP_THRESHOLD: Final = -3
_MMAP_MAX: Final = -4
# glibc's own: how many buffers may be mappings of their own, and from which size on (the most that its rule rises to).
_MANY: Final = 65536
_LARGE: Final = 32 << 20
_NEVER: Final = -1
# Whoever sets one of these has chosen himself.
_CHOSEN: Final = ("MALLOC_MMAP_MAX_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")


class _Heap:
    """What is set in this process.

    Attributes:
        glibc: Its functions once ``keep_heap`` was called, None before.
        depth: How many ``large_buffers_kept`` are open.
        lock: Held while the depth changes.
    """

    glibc: ctypes.CDLL | None = None
    depth = 0
    lock = threading.Lock()


def keep_heap() -> bool:
    """Let freed memory stay with this process to its end; for commands, which own theirs.

    Returns:
        Whether it does. Not where the C library is another than glibc, or the environment has settings of its own.
    """
    if any(name in os.environ for name in _CHOSEN):
        return False
    glibc = _find_glibc()
    if glibc is None:
        return False
    glibc.mallopt(_TRIM_THRESHOLD, _NEVER)
    glibc.mallopt(_MMAP_THRESHOLD, _LARGE)
    _Heap.glibc = glibc
    return True


@contextmanager
def large_buffers_kept() -> Iterator[None]:
    """Take buffers above 32 MiB, too, from the heap while a network runs; nothing happens before ``keep_heap``."""
    _change_depth(1)
    try:
        yield
    finally:
        _change_depth(-1)


def _change_depth(by: int) -> None:
    # A server encodes in several threads.
    with _Heap.lock:
        outside = _Heap.depth == 0
        _Heap.depth += by
        if _Heap.glibc is not None and outside != (_Heap.depth == 0):
            _Heap.glibc.mallopt(_MMAP_MAX, 0 if outside else _MANY)


def _find_glibc() -> ctypes.CDLL | None:
    try:
        library = ctypes.CDLL(None)
    except (OSError, TypeError):  # Windows
        return None
    return library if hasattr(library, "gnu_get_libc_version") and hasattr(library, "mallopt") else None

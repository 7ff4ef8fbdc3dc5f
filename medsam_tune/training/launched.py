"""Processes that Lightning starts as the further ranks of a run, and that must not outlive the one that started them."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_OTHER_LAUNCHERS = ("TORCHELASTIC_RUN_ID", "SLURM_PROCID")


def die_with_launcher(environ: Mapping[str, str] = os.environ) -> bool:
    """Let the kernel end this process as soon as the one that started it as a rank is gone, however it went.

    Where a further rank dies, Lightning ends all others within seconds; where rank 0 is killed nobody would, and the others
    wait in a collective for half an hour. ``torchrun`` and ``srun`` look after their processes themselves. On Linux alone.

    Returns:
        Whether this process is such a rank.
    """
    rank = environ.get("LOCAL_RANK", "0")
    # Rank 0 belongs to whoever typed the command, who may well log out.
    if sys.platform != "linux" or not rank.isdecimal() or int(rank) == 0 or any(name in environ for name in _OTHER_LAUNCHERS):
        return False
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    return True

"""Processes that a test needs, forked from a server that has imported what takes seconds, once for a worker of pytest."""

from __future__ import annotations

import faulthandler
import os
import sys
import time
from collections.abc import Callable, Sequence
from multiprocessing import Manager, forkserver, get_context
from multiprocessing.connection import wait
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path
from typing import Any

import pytest
from torch.multiprocessing import ProcessExitedException, ProcessRaisedException, start_processes

# tests/__init__.py switches the collector of garbage off for the imports, tests/frozen.py on again.
PRELOADED = [
    "tests",
    "medsam_tune.runs.run",
    "medsam_tune.cli.run",
    "medsam_tune.tuners.peft_tuner",
    "monai.losses",
    "monai.metrics",
    "tests.processes",
    "tests.frozen",
]
ROOT = Path(__file__).parents[1]

SECONDS, SECONDS_ALONE = 300.0, 20.0
"""How long processes may take, and how long one may go on after another of its group has failed."""
TOO_LONG = 124

Before = Callable[[], Callable[[], None] | None]


def warm() -> ForkServerContext:
    """Return a context of ``multiprocessing`` whose processes start with everything imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    with pytest.MonkeyPatch.context() as patch:
        # Python 3.11 gives the server no path but this one, and tests/ lies in no installed package.
        patch.setenv("PYTHONPATH", str(ROOT), prepend=os.pathsep)
        forkserver.ensure_running()
    return context


def start_command(*words: str, folder: Path, before: Before | None = None, **environ: str) -> ForkServerProcess:
    """Start ``medsam-tune`` with these words as a process that writes all that it says to ``log.txt``.

    Args:
        words: What is typed after ``medsam-tune``.
        folder: Where it is typed.
        before: What the process does first; what this returns is called at the end.
        environ: What it finds in its environment beside what stands in that of this process.
    """
    process = warm().Process(target=_live, args=(words, folder, {**os.environ, **environ}, before))
    process.start()
    return process


def status_of(process: ForkServerProcess) -> int:
    """Wait for a process and return its exit status, which is below 0 where a signal ended it."""
    return statuses_of([process])[0]


def statuses_of(processes: Sequence[ForkServerProcess]) -> list[int]:
    """Wait for processes that work together and return their exit statuses; as torchrun does, one that fails ends the others.

    What is still at work after five minutes has written to its log where it stands, and is killed: 124, as ``timeout`` says it.
    """
    ends = time.monotonic() + SECONDS
    while any(process.exitcode is None for process in processes) and time.monotonic() < ends:
        wait([process.sentinel for process in processes if process.exitcode is None], ends - time.monotonic())
        if any(process.exitcode for process in processes):
            ends = min(ends, time.monotonic() + SECONDS_ALONE)
    statuses = [TOO_LONG if process.exitcode is None else process.exitcode for process in processes]
    for process in processes:
        process.kill()
    return statuses


def noted_by_two_ranks(run_rank: Callable[[int, str, list[Any]], None], folder: Path) -> list[Any]:
    """Let two processes run ``run_rank(rank, address, noted)`` and return what they noted.

    They find each other by a file, so that no port has to be free. What they said is part of the error if one ends otherwise.
    """
    warm()
    log = folder / "log.txt"
    with Manager() as manager:
        noted = manager.list()
        try:
            start_processes(_logged, (log, run_rank, f"file://{folder}/rendezvous", noted), nprocs=2, start_method="forkserver")
        except (ProcessRaisedException, ProcessExitedException) as error:
            raise AssertionError(f"{error}\n{list(noted)}\n{log.read_text()}") from error
        return list(noted)


def _logged(rank: int, log: Path, run_rank: Callable[[int, str, list[Any]], None], address: str, noted: list[Any]) -> None:
    _write_to(log)
    run_rank(rank, address, noted)


def _write_to(log: Path) -> None:
    """Append what this process says to a file, and where it stands should it take too long."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    faulthandler.dump_traceback_later(SECONDS - 20, file=descriptor)


def _live(words: tuple[str, ...], folder: Path, environ: dict[str, str], before: Before | None) -> None:
    from medsam_tune.cli import main

    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    _write_to(Path("log.txt"))
    # Every small file waits for the disk otherwise; no test cuts the power.
    os.fsync = lambda descriptor: None
    after = before() if before else None
    try:
        sys.exit(main(list(words)))
    finally:
        if after:
            after()

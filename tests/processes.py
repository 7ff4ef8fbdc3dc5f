"""Processes that a test needs, forked from a server that has imported what takes seconds, once for a worker of pytest."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from multiprocessing import Manager, get_context
from multiprocessing.context import ForkServerContext, ForkServerProcess
from pathlib import Path

from torch.multiprocessing import start_processes

PRELOADED = ["medsam_tune.runs.run", "medsam_tune.cli.run", "medsam_tune.tuners.peft_tuner", "monai.losses", "monai.metrics"]

Before = Callable[[], Callable[[], None] | None]


def warm() -> ForkServerContext:
    """Return a context of ``multiprocessing`` whose processes start with everything imported."""
    context = get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
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
    process.join(300)
    status = process.exitcode
    process.kill()
    assert status is not None, "still at work after five minutes"
    return status


def faults_of_two_ranks(run_rank: Callable[[int, str, list[str]], None], folder: Path) -> list[str]:
    """Let two processes run ``run_rank(rank, address, faults)`` and return the faults that they noted."""
    warm()
    with Manager() as manager:
        faults = manager.list()
        start_processes(run_rank, (f"file://{folder}/rendezvous", faults), nprocs=2, start_method="forkserver")
        return list(faults)


def _live(words: tuple[str, ...], folder: Path, environ: dict[str, str], before: Before | None) -> None:
    from medsam_tune.cli import main

    os.environ.clear()
    os.environ.update(environ)
    os.chdir(folder)
    log = os.open("log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # Every small file waits for the disk otherwise; no test cuts the power.
    os.fsync = lambda descriptor: None
    after = before() if before else None
    try:
        sys.exit(main(list(words)))
    finally:
        if after:
            after()

"""The processes of a sweep: each training a process group of its own, all ended together, one sweep a folder."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import IO

from medsam_tune.errors import RecipeError
from medsam_tune.files import write_fault

# A training that is asked to end writes a checkpoint first.
GRACE_SECONDS = 60.0
LOCK_FILE = ".sweep.lock"


class Trainings:
    """Start trainings and end them, each with all that it has started itself (ranks, loader workers).

    Args:
        lock: The descriptor of the sweep's lock. Every training holds it too, so a folder whose sweep was killed outright stays
            closed until its last training has ended.

    Attributes:
        ended_by: Number of the signal that ends the sweep, or None while it goes on.
    """

    def __init__(self, lock: int) -> None:
        self.lock = lock
        self.ended_by: int | None = None
        self._running: set[subprocess.Popen[bytes]] = set()

    @contextmanager
    def start(self, command: Sequence[str], log: IO[str], environ: Mapping[str, str]) -> Iterator[subprocess.Popen[bytes]]:
        """Start one training, whose end comes with the end of the block."""
        process = subprocess.Popen(
            command,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=environ,
            # Ctrl-C in the terminal reaches the sweep alone, which passes it on in order.
            start_new_session=True,
            pass_fds=(self.lock,),
        )
        watch = _watch_for_the_end_of_the_sweep(process)
        self._running.add(process)
        try:
            yield process
        finally:
            watch.kill()
            watch.communicate()
            self._end(process)
            self._running.discard(process)

    @contextmanager
    def ended_by_signals(self) -> Iterator[None]:
        """Note SIGTERM and Ctrl-C within the block in ``ended_by``, for the loops to look at; a second one kills at once."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    def raise_if_ended(self) -> None:
        """End this process as the signal that ended the sweep would have: Ctrl-C as Ctrl-C, SIGTERM with status 143.

        Raises:
            KeyboardInterrupt: After Ctrl-C.
            SystemExit: After SIGTERM.
        """
        if self.ended_by == signal.SIGINT:
            raise KeyboardInterrupt
        if self.ended_by is not None:
            raise SystemExit(128 + self.ended_by)

    def _note(self, number: int, frame: FrameType | None) -> None:
        # Nothing is waited for here: a handler runs in the midst of whatever the main thread was doing.
        if self.ended_by is not None:
            for process in list(self._running):
                _signal_group(process, signal.SIGKILL)
        self.ended_by = number

    def _end(self, process: subprocess.Popen[bytes]) -> None:
        if process.poll() is None:
            _signal_group(process, signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                process.wait(timeout=GRACE_SECONDS)
        # The leader may have gone and left its ranks.
        _signal_group(process, signal.SIGKILL)
        process.wait()


@contextmanager
def locked(folder: Path) -> Iterator[int]:
    """Make ``folder`` and keep it for this sweep; yield the lock's descriptor.

    Raises:
        RecipeError: If the folder cannot be made, or another sweep or one of its trainings still works in it.
    """
    path = folder / LOCK_FILE
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise RecipeError(write_fault(folder, error)) from error
    try:
        _lock(lock, folder)
        yield lock
    finally:
        os.close(lock)


def _lock(lock: int, folder: Path) -> None:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        holder = os.pread(lock, 20, 0).decode(errors="replace").strip() or "unknown"
        raise RecipeError(
            f"{folder}: another sweep works here (process {holder}, or a training that it started). "
            "Wait until it has ended, or give another --folder."
        ) from error
    os.ftruncate(lock, 0)
    os.pwrite(lock, str(os.getpid()).encode(), 0)


def _watch_for_the_end_of_the_sweep(process: subprocess.Popen[bytes]) -> subprocess.Popen[bytes]:
    """Start a shell that asks the training to end as soon as the sweep is gone, also by SIGKILL, which nobody can catch.

    It waits for the end of a pipe whose other end this process alone holds.
    """
    command = ["/bin/sh", "-c", f"read -r _; kill -TERM -{process.pid}"]
    quiet = subprocess.DEVNULL
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=quiet, stderr=quiet, start_new_session=True)


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, number)

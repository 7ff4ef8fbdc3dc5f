"""Names of temporary files that say which process writes them, and the removal of those whose process is gone."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import socket
import time
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from uuid import uuid4

TEMPORARY_PREFIX = ".partial-"
# Of a process elsewhere nobody can tell whether it lives; a file that it has not touched for this long was left.
_ABANDONED_SECONDS = 3600.0
_NAME = re.compile(rf"{re.escape(TEMPORARY_PREFIX)}([0-9a-f]{{12}})-(\d+)-(\d+)-[0-9a-f]+")


def temporary_name() -> str:
    """Return a new name that tells machine, process and the process's start; nothing of the final name, which may be long."""
    process = os.getpid()
    return f"{TEMPORARY_PREFIX}{_place()}-{process}-{_started(process)}-{uuid4().hex[:16]}"


def is_abandoned(path: Path) -> bool:
    """Tell whether whoever made a temporary file or folder is gone.

    On this machine a dead process is known at once. A file of another machine counts after an hour without a change; its
    folders never do, since what is written further below does not show on them.
    """
    found = _NAME.fullmatch(path.name)
    if found is not None and found[1] == _place():
        return not _lives(int(found[2]), int(found[3]))
    return path.is_file() and time.time() - path.stat().st_mtime > _ABANDONED_SECONDS


def abandoned_in(folder: Path) -> list[Path]:
    """Return what killed processes left in a folder, not below it."""
    found = []
    for path in folder.glob(f"{TEMPORARY_PREFIX}*"):
        with suppress(FileNotFoundError):
            found += [path] if is_abandoned(path) else []
    return sorted(found)


def remove_abandoned(folder: Path) -> None:
    """Remove what killed processes left in a folder; what a living one is writing stays."""
    for path in abandoned_in(folder):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def remove_abandoned_below(folder: Path) -> None:
    """Remove what killed processes left in a folder and in those below it."""
    with suppress(FileNotFoundError):
        for place in {path.parent for path in folder.rglob(f"{TEMPORARY_PREFIX}*")}:
            remove_abandoned(place)


def tidy_once(folder: Path) -> None:
    """Remove what killed processes left in a folder, the first time that this process writes into it."""
    _tidy(folder, os.getpid())


@lru_cache(maxsize=1024)
def _tidy(folder: Path, process: int) -> None:
    remove_abandoned(folder)


@lru_cache(maxsize=1)
def _place() -> str:
    """Return what tells this machine, and this container's numbering of processes, from others."""
    parts = [socket.gethostname()]
    with suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return hashlib.blake2b("\n".join(parts).encode(), digest_size=6).hexdigest()


def _started(process: int) -> int:
    """Return when a process began, in the kernel's ticks; 0 where there is no /proc to tell."""
    try:
        # The name in brackets may hold blanks and brackets itself.
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    # A zombie holds its number until it is waited for, but writes no more.
    return -1 if fields[0] == "Z" else int(fields[19])


def _lives(process: int, started: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return _started(process) == started

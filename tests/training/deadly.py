"""A process that has trained once and forks a child for every run, which kills itself with SIGKILL at a chosen moment."""

import gc
import os
import signal
import sys
import warnings
from pathlib import Path

from tests.processes import warm

COUNTED = ("/medsam_tune/", "/lightning/pytorch/")
# What changes a disk, as the interpreter announces it before it happens; os.replace is announced as os.rename.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


class Deadly:
    """Run ``medsam-tune`` in children that die at a moment: the n-th call of a function, of any, or change of the disk."""

    def __init__(self):
        context = warm()
        self._jobs, given = context.Pipe()
        self._process = context.Process(target=_serve, args=(given, dict(os.environ)))
        self._process.start()
        given.close()

    def run(self, *words, folder, at=None, call=1, by=signal.SIGKILL, command=("run", "tiny.yaml"), program=None):
        """Return the exit status; ``at`` names a function as ``module:qualified.name``, or is ``any`` or ``disk``.

        The signal ``by`` is sent as the function is entered for the ``call``-th time. ``disk`` counts what changes the disk
        below the folder, from the first thing that the command does on: files that are opened for writing, brought to the
        disk, renamed and removed, folders that are made and removed. ``program`` stands for ``medsam-tune`` in a sweep.
        """
        job = {"words": [*command, *words], "folder": str(folder), "at": at, "call": call, "by": int(by), "program": program}
        self._jobs.send(job)
        return int(self._jobs.recv())

    def close(self):
        self._jobs.send(None)
        self._process.join(300)
        self._jobs.close()


def _serve(jobs, environ):
    """Do jobs, each in a child of its own, until there is none; one that is to be ``warm`` is done here, for all children."""
    from medsam_tune.cli import main

    os.environ.clear()
    os.environ.update(environ)
    warnings.simplefilter("ignore")
    while (job := jobs.recv()) is not None:
        if job["at"] == "warm":
            jobs.send(_live({**job, "at": None}, main))
            # What is there now is never garbage; to look through it would make every child copy it.
            gc.collect()
            gc.freeze()
            continue
        child = os.fork()
        if child == 0:
            os._exit(_live(job, main))
        _, status = os.waitpid(child, 0)
        jobs.send(os.waitstatus_to_exitcode(status))


def _live(job, main):
    folder = Path(job["folder"])
    os.chdir(folder)
    os.environ["MEDSAM_TUNE_CACHE"] = str(folder / "cache")
    log = os.open(folder / "log.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    os.fsync = lambda descriptor: None
    if job["program"]:
        _stand_in(job["program"])
    calls = [0]
    if job["at"] == "disk":
        _die_at_the_disk(job["call"], calls, folder)
    elif job["at"] == "any":
        _die_at_any(job["call"], calls)
    elif job["at"]:
        _die_at(job["at"], job["call"], job["by"])
    try:
        return main(job["words"])
    finally:
        sys.setprofile(None)
        (folder / "calls.txt").write_text(str(calls[0]))
        sys.stdout.flush()


def _stand_in(program):
    from medsam_tune.sweeps import local

    local.PROGRAM, local.POLL_SECONDS = tuple(program), 0.02


def _die_at(name, call, by):
    module, _, path = name.partition(":")
    owner = __import__(module, fromlist=["_"])
    *parents, last = path.split(".")
    for parent in parents:
        owner = getattr(owner, parent)
    original, seen = getattr(owner, last), []

    def deadly(*arguments, **keywords):
        seen.append(1)
        if len(seen) == call:
            os.kill(os.getpid(), by)
        return original(*arguments, **keywords)

    setattr(owner, last, deadly)


def _die_at_the_disk(call, calls, folder):
    """Count what changes the disk below a folder, and die just before one such change."""
    below, original = str(folder), os.fsync

    def count(event, arguments):
        place = str(arguments[0]) if arguments else ""
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
        here = place.startswith(below) or not os.path.isabs(place)
        if (writes or event in CHANGES) and here and "log.txt" not in place and "calls.txt" not in place:
            strike()

    def strike():
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)

    def fsync(descriptor):
        strike()
        return original(descriptor)

    os.fsync = fsync
    sys.addaudithook(count)


def _die_at_any(call, calls):
    """Count the calls of functions of the package and of Lightning from the start of training on, and die at one of them."""
    from medsam_tune.training.callbacks import StageClock

    original = StageClock.on_train_start

    # Asked at each call of a function, so the answer for a file is kept.
    counted = {}

    def count(frame, event, argument):
        if event != "call":
            return
        file = frame.f_code.co_filename
        if file not in counted:
            counted[file] = any(part in file for part in COUNTED)
        if counted[file]:
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_train_start(self, *arguments):
        original(self, *arguments)
        sys.setprofile(count)

    StageClock.on_train_start = on_train_start

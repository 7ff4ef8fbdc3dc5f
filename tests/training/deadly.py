"""A process that imports torch once and forks a child for every run, which kills itself with SIGKILL at a chosen moment.

Started as ``python -m tests.training.deadly``; each line of its input is a job, each line of its output the job's exit status.
"""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

COUNTED = ("/medsam_tune/", "/lightning/pytorch/")
# What changes a disk, as the interpreter announces it before it happens; os.replace is announced as os.rename.
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.link", "os.symlink")


class Deadly:
    """Run ``medsam-tune`` in children that die at a moment: the n-th call of a function, of any, or change of the disk."""

    def __init__(self):
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
        command = [sys.executable, "-m", "tests.training.deadly"]
        self._process = subprocess.Popen(
            command, env=environment, cwd=Path(__file__).parents[2], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def run(self, *words, folder, at=None, call=1, by=signal.SIGKILL, command=("run", "tiny.yaml"), program=None):
        """Return the exit status; ``at`` names a function as ``module:qualified.name``, or is ``any`` or ``disk``.

        The signal ``by`` is sent as the function is entered for the ``call``-th time. ``disk`` counts what changes the disk
        below the folder, from the first thing that the command does on: files that are opened for writing, brought to the
        disk, renamed and removed, folders that are made and removed. ``program`` stands for ``medsam-tune`` in a sweep.
        """
        job = {"words": [*command, *words], "folder": str(folder), "at": at, "call": call, "by": int(by), "program": program}
        self._process.stdin.write(json.dumps(job) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    def close(self):
        self._process.stdin.close()
        self._process.wait(300)
        self._process.stdout.close()


def _serve():
    import medsam_tune.runs.run  # noqa: F401 - imported once, for all children
    from medsam_tune.cli import main

    answers = os.fdopen(os.dup(1), "w")
    for line in sys.stdin:
        job = json.loads(line)
        if job["at"] == "warm":
            job["at"] = None
            answers.write(f"{_live(job, main)}\n")
            answers.flush()
            continue
        child = os.fork()
        if child == 0:
            os._exit(_live(job, main))
        _, status = os.waitpid(child, 0)
        answers.write(f"{os.waitstatus_to_exitcode(status)}\n")
        answers.flush()


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

    def count(frame, event, argument):
        if event == "call" and any(part in frame.f_code.co_filename for part in COUNTED):
            calls[0] += 1
            if calls[0] == call:
                os.kill(os.getpid(), signal.SIGKILL)

    def on_train_start(self, *arguments):
        original(self, *arguments)
        sys.setprofile(count)

    StageClock.on_train_start = on_train_start


if __name__ == "__main__":
    _serve()

"""Kill runs just before changes of the disk, type them again, and count what came back otherwise.

    python benchmarks/kills.py --every 4        every fourth change of a run from its empty cache to its report
    python benchmarks/kills.py --at 17 18 19    these
    python benchmarks/kills.py --of predict     a prediction of two images; export, "export --to adapter" and sweep are others

A change is a file opened for writing, brought to the disk, renamed or removed, a folder made or removed. One line a kill, at
the end the counts: runs whose best or last checkpoint, rows of metrics.csv, test or export differ from those of a run that
nobody killed, and temporary files that were still there after the command was typed again.
"""

from __future__ import annotations

import argparse
import collections
import json
import signal
import tempfile
import time
from pathlib import Path

from tests.training import killed_commands
from tests.training.deadly import Deadly
from tests.training.killed import differences, go_on, killed_at_the_disk, newest, recorded
from tests.training.tiny_runs import write_workplace

SETTINGS = ("--run.save_every_n_steps=2", "--trainer.log_every_n_steps=1", "--trainer.max_epochs=2", "--run.report=true")


def main() -> None:
    """Kill, continue, compare and count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--every", type=int, default=4, help="kill at every n-th change")
    parser.add_argument("--of", default="run", help="the command: run, predict, export, 'export --to adapter', sweep")
    parser.add_argument("--at", type=int, nargs="*", help="kill at these changes")
    parser.add_argument("--minutes", type=float, default=60.0, help="begin no further kill after so long")
    options = parser.parse_args()
    folder, deadly = Path(tempfile.mkdtemp()), Deadly()
    if options.of == "run":
        kill_runs(deadly, folder, options)
    else:
        kill_commands(deadly, folder, options)
    deadly.close()


def kill_commands(deadly: Deadly, folder: Path, options: argparse.Namespace) -> None:
    """Kill a command that follows a training, and count what it left that it should not have, or otherwise."""
    command = killed_commands.prepare(deadly, folder)[options.of]
    expected, changes = killed_commands.whole(deadly, folder, command)
    print(f"{changes} changes of the disk in one {options.of}", flush=True)
    counts, ends = collections.Counter(), time.time() + 60 * options.minutes
    for call in options.at or range(1, changes + 1, options.every):
        if time.time() > ends:
            break
        statuses, found, temporary = killed_commands.killed(deadly, folder, command, call)
        wrong = [] if statuses == (-signal.SIGKILL, 0) else [f"statuses {statuses}"]
        wrong += ["temporary files"] if temporary else []
        wrong += ["files"] if found != expected else []
        counts.update(["kills", *wrong])
        print(call, wrong or "same", temporary[:2], flush=True)
    print(json.dumps({"changes": changes, **counts}))


def kill_runs(deadly: Deadly, folder: Path, options: argparse.Namespace) -> None:
    """Kill trainings."""
    write_workplace(folder)
    for name, moment in (("warm", {"at": "warm"}), ("whole", {"at": "disk", "call": -1})):
        if name == "whole":
            (folder / "cache").rename(folder / "cache-of-warm")
        if go_on(deadly, folder, folder / name, *SETTINGS, **moment) != 0:
            raise SystemExit(f"the run that nobody kills fails: {folder / 'log.txt'}")
    changes = int((folder / "calls.txt").read_text())
    print(f"{changes} changes of the disk in one run", flush=True)
    whole, counts, ends = recorded(newest(folder / "whole")), collections.Counter(), time.time() + 60 * options.minutes
    for call in options.at or range(1, changes + 1, options.every):
        if time.time() > ends:
            break
        statuses, run, left = killed_at_the_disk(deadly, folder, folder / "killed", SETTINGS, call)
        wrong = differences(recorded(run), whole) + (["temporary files"] if left else [])
        wrong += [] if statuses == (-signal.SIGKILL, 0) else [f"statuses {statuses}"]
        counts.update(["kills", *wrong])
        print(call, wrong or "same", left[:2], flush=True)
    print(json.dumps({"changes": changes, **counts}))


if __name__ == "__main__":
    main()

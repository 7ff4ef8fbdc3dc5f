"""Commands after a training that are killed just before a change of the disk, typed again, and leave what they would have."""

import shutil
import signal
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from medsam_tune.files import sha256_of
from medsam_tune.leftovers import TEMPORARY_PREFIX
from tests.training.killed import newest
from tests.training.tiny_runs import write_workplace

KILLED = -signal.SIGKILL
# A training of a sweep: three epochs, each a checkpoint that a second process goes on from.
STAND_IN = """
import json, pathlib, sys
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[3:])
run = pathlib.Path(words["run.folder"]) / "data" / "recipe" / "now"
last, rows = run / "checkpoints" / "last.ckpt", run / "metrics.csv"
for name in ("checkpoints", "export"):
    (run / name).mkdir(parents=True, exist_ok=True)
done = json.loads(last.read_text()) if "ckpt_path" in words else []
for epoch in range(len(done), 3):
    done.append(0.9 - abs(float(words["model.tuner.rank"]) - 4) / 100 - 0.1 / (epoch + 1))
    last.write_text(json.dumps(done))
lines = [f"{epoch},{epoch},{dice}" for epoch, dice in enumerate(done)]
rows.write_text("\\n".join(["epoch,step,val/dice", *lines]) + "\\n")
(run / "export" / "trained.safetensors").write_bytes(b"x" * 100)
summary = {"test": {"dice": {"mean": max(done), "ci95": None}}, "parameters": {"trained": 1000}, "seconds": {"fit": 1.5}}
(run / "summary.json").write_text(json.dumps(summary))
"""
SWEEP = {
    "program": "medsam-tune",
    "command": ["${env}", "medsam-tune", "run", "recipes/lora.yaml", "${args}"],
    "method": "random",
    "run_cap": 3,
    "metric": {"name": "val/dice", "goal": "maximize"},
    "parameters": {"model.tuner.rank": {"min": 1, "max": 1000}},
}


@dataclass(frozen=True)
class Command:
    """A command, where its result comes to, and which files of it are no part of the result."""

    words: tuple[str, ...]
    out: str
    program: tuple[str, ...] | None = None
    but: tuple[str, ...] = field(default=())


def prepare(deadly, folder):
    """Train a run in a workplace, and return the commands that are killed by name."""
    write_workplace(folder)
    assert deadly.run("--run.report=false", folder=folder, at="warm") == 0
    (folder / "new").mkdir()
    for name in ("c0_0", "c1_1"):
        shutil.copy(folder / "images" / "images" / f"{name}.png", folder / "new")
    (folder / "stand_in.py").write_text(STAND_IN)
    (folder / "rank.yaml").write_text(yaml.safe_dump(SWEEP))
    run = str(newest(folder / "runs").path)
    program = (sys.executable, "-I", "-S", str(folder / "stand_in.py"))
    return {
        "predict": Command(("predict", run, "new", "-o", "out", "--overlays"), "out"),
        "export": Command(("export", run), f"{run}/export"),
        "export --to adapter": Command(("export", run, "--to", "adapter", "out"), "out"),
        "sweep": Command(("sweep", "rank.yaml", "--local", "--folder=out"), "out", program, ("study.journal", ".sweep.lock")),
    }


def whole(deadly, folder, command):
    """Run a command that nobody kills; return what it leaves and how often it changes the disk."""
    _clear(folder, command)
    assert _typed(deadly, folder, command, at="disk", call=-1) == 0, (folder / "log.txt").read_text()[-2000:]
    return left(folder / command.out, command), int((folder / "calls.txt").read_text())


def killed(deadly, folder, command, call):
    """Kill a command just before its ``call``-th change of the disk and type it again.

    Returns:
        The exit statuses, what it leaves, and the temporary files below the workplace.
    """
    _clear(folder, command)
    statuses = _typed(deadly, folder, command, at="disk", call=call), _typed_again(deadly, folder, command)
    temporary = [str(path.relative_to(folder)) for path in folder.rglob("*") if path.name.startswith(TEMPORARY_PREFIX)]
    return statuses, left(folder / command.out, command), sorted(temporary)


def left(place, command):
    """Return the checksum of each file below a folder."""
    files = (path for path in place.rglob("*") if path.is_file())
    return {path.relative_to(place).as_posix(): sha256_of(path) for path in files if path.name not in command.but}


def _typed_again(deadly, folder, command):
    """Type a command again, once a training that the killed one had started has ended."""
    until = time.monotonic() + 30
    while (status := _typed(deadly, folder, command)) == 2 and time.monotonic() < until:
        time.sleep(0.1)
    return status


def _typed(deadly, folder, command, **moment):
    return deadly.run(folder=folder, command=command.words, program=command.program, **moment)


def _clear(folder, command):
    place = Path(folder, command.out)
    if place.name == "out":
        shutil.rmtree(place, ignore_errors=True)

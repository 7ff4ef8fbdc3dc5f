"""A workplace of every kind of input, made once and copied for each case; and the one way in which a case is judged."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsam_tune.cli import main
from tests.bad_inputs.cases import RUN_FOLDER
from tests.training.tiny_runs import RECIPE, forget_run, only_run, run, write_workplace

SECONDS = 60
# What to do is a second sentence, or what a key expects and what it got.
SENTENCES = re.compile(r"^error: (.+[.?)] \S.*[.?]|[\w. -]+: .*(expected|must be|needs) .+[,;:] .+)$", re.DOTALL)
SOURCE = "{class_path: medsam_tune.data.ImageFolder, init_args: {case_pattern: '^([^_]+)_'}}"
SWEEP = """\
program: medsam-tune
command: ["${env}", medsam-tune, run, tiny.yaml, "${args}"]
method: grid
metric: {name: val/dice, goal: maximize}
parameters:
  data.batch_size: {values: [1, 2]}
"""
# Where several files are at fault each has its line.
LISTED = re.compile(r"^  \S.*[.?)] \S.*[.?]$", re.MULTILINE)


def recipe_for(source: str, root: str) -> str:
    """Return the tiny recipe on other data."""
    return RECIPE.replace(SOURCE, source).replace("root: images", f"root: {root}")


def write_volumes(root: Path) -> None:
    """Write six volumes of 8 x 8 x 3 voxels with a cube in each."""
    for folder in ("images", "labels"):
        (root / folder).mkdir(parents=True)
        for case in range(6):
            values = np.zeros((8, 8, 3), np.int16 if folder == "images" else np.uint8)
            values[2:6, 2 : 4 + case % 3] = 90 if folder == "images" else 1
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), root / folder / f"v{case}.nii.gz")


def write_npz(root: Path) -> None:
    """Write six of MedSAM's files: three slices of 8 x 8 pixels each."""
    root.mkdir()
    for case in range(6):
        masks = np.zeros((3, 8, 8), np.uint8)
        masks[:, 2:6, 2 : 4 + case % 3] = 1
        np.savez(root / f"n{case}.npz", imgs=masks * 90, gts=masks, spacing=np.ones(3))


@pytest.fixture(scope="session")
def template(tmp_path_factory):
    """Return a folder with data of every kind, recipes for them, a sweep, a cache, and a finished run."""
    folder = tmp_path_factory.mktemp("template")
    write_workplace(folder)
    write_volumes(folder / "volumes")
    write_npz(folder / "npz")
    (folder / "volumes.yaml").write_text(recipe_for("{class_path: medsam_tune.data.NiftiVolumes}", "volumes"))
    (folder / "npz.yaml").write_text(recipe_for("{class_path: medsam_tune.data.MedsamNpz}", "npz"))
    (folder / "shards.yaml").write_text(recipe_for("{class_path: medsam_tune.data.ImageShards}", "shards"))
    (folder / "sweep.yaml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        assert main(["prepare", "images", "shards", "--format=images", "--case-pattern=^([^_]+)_", "--shards=7"]) == 0
        assert run("--trainer.max_epochs=1", "--run.baselines=false", "--run.report=false") == 0
        only_run().path.rename(RUN_FOLDER)
        shutil.rmtree("runs")
        shutil.rmtree(RUN_FOLDER / "tensorboard")
    forget_run()
    return folder


@pytest.fixture
def place(template, tmp_path, monkeypatch):
    """Return a fresh copy of the template, which is the current folder."""
    folder = shutil.copytree(template, tmp_path / "place")
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.chdir(folder)
    forget_run()
    yield folder
    forget_run()


def written(folder: Path) -> dict[str, object]:
    """Return every file below a folder with what changes when it is written; notes of what was looked at, and locks, aside."""
    noted = [folder / "cache" / "checked", folder / "cache" / "shards"]
    found = {}
    for path in folder.rglob("*"):
        if not any(path.is_relative_to(note) for note in noted) and path.suffix != ".lock":
            state = path.lstat()
            found[str(path.relative_to(folder))] = None if path.is_dir() else (state.st_size, state.st_mtime_ns)
    return found


class TooSlow(BaseException):
    """A command that hangs; no ``except Exception`` may swallow it."""


def _ring(*_: object) -> None:
    raise TooSlow(f"no answer within {SECONDS} s")


@pytest.fixture
def refused(place, tmp_path, capfd):
    """Return a function that runs a case and asserts that it is refused as every bad input must be."""

    def judge(case):
        case.spoil()
        before = written(place)
        capfd.readouterr()
        handler = signal.signal(signal.SIGALRM, _ring)
        signal.alarm(SECONDS)
        try:
            status = main(list(case.command))
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, handler)
        said = capfd.readouterr().err
        rules = {
            "status is not 2": status == 2,
            "traceback": "Traceback" not in said,
            "not one line": said.count("\n") == 1 or said.count("\n") - 1 == len(LISTED.findall(said)),
            f"does not name {case.culprit}": case.culprit in said,
            f"does not say {case.said}": case.said in said,
            "no remedy": SENTENCES.match(said.strip()) is not None,
            f"written: {sorted(name for name, _ in set(before.items()) ^ set(written(place).items()))}": written(place)
            == before,
            # Only what nobody foresaw has its traceback in a log.
            "a log": not (tmp_path / "state").exists(),
        }
        broken = [rule for rule, kept in rules.items() if not kept]
        assert not broken, f"{broken}, status {status}, said: {said[:600]}"

    return judge

"""Two real runs held against each other: on their own cases, on other data, and as Weights & Biases logs it."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.cli import main
from medsam_tune.files import read_json, write_json
from medsam_tune.training.pooling import pooled_runs, write_pooled
from tests.training.tiny_runs import forget_run, run

PANEL = r'<figure class="panel"'


@pytest.fixture(scope="module")
def runs(finished):
    """Return the workplace, the finished run, and a second one over the same cases."""
    folder, first = finished
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MEDSAM_TUNE_CACHE", str(folder / "cache"))
        patch.chdir(folder)
        forget_run()
        others = ("--run.folder=others", "--run.name=b", "--model.prompt_encoder.width=16", "--trainer.max_epochs=1")
        assert run(*others) == 0
        forget_run()
        yield folder, str(first.path), str(next(folder.glob("others/*/*/*")))


@pytest.fixture(autouse=True)
def _where_the_data_are(monkeypatch, runs):
    # The recipe's data folder is a relative path.
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(runs[0] / "cache"))
    monkeypatch.chdir(runs[0])


def write_others(root):
    """Write three cases that no run was trained on."""
    random = np.random.default_rng(7)
    for folder in ("images", "masks"):
        (root / folder).mkdir(parents=True)
    for case in "xyz":
        disc = np.hypot(*(np.mgrid[:16, :20] - random.integers(6, 10, (2, 1, 1)))) < 4
        Image.fromarray((random.integers(0, 60, (16, 20)) + 150 * disc).astype(np.uint8)).save(
            root / "images" / f"{case}_0.png"
        )
        Image.fromarray((255 * disc).astype(np.uint8)).save(root / "masks" / f"{case}_0.png")


def test_worst_cases_are_shown_as_each_run_sees_them(runs, tmp_path):
    assert main(["compare", *runs[1:], "--pictures=2", f"--html={tmp_path / 'page.html'}"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert len(re.findall(PANEL, text)) == 4
    assert len(text.encode()) < 5_000_000
    assert 'class="untuned' in text or 'class="rim untuned' in text


def test_pooled_runs_are_shown_from_another_folder_too_and_those_that_are_gone_named(runs, tmp_path, monkeypatch):
    """A pooled folder holds its runs' places as seen from where the command ran; without them it had no picture and no word."""
    folder, first, second = runs
    pooled = folder / "others" / "pooled" / "both" / "time"
    write_pooled({label: Path(run).relative_to(folder) for label, run in (("a", first), ("b", second))}, pooled)
    monkeypatch.chdir(tmp_path)
    assert pooled_runs(pooled) == {"a": Path(first), "b": Path(second)}
    content = read_json(pooled / "summary.json", "")
    content["runs"]["b"]["folder"] = "runs/gone"
    write_json(pooled / "summary.json", content)
    monkeypatch.chdir(folder)
    assert main(["compare", str(pooled), first, "--pictures=1", f"--html={tmp_path / 'page.html'}"]) == 0
    text = (tmp_path / "page.html").read_text()
    assert len(re.findall(PANEL, text)) == 2
    assert "A is not shown by runs/gone: not there." in text


@pytest.mark.slow  # two runs are tested anew
def test_runs_are_compared_on_other_data(runs, capsys, tmp_path):
    write_others(tmp_path / "other")
    words = [f"--data={tmp_path / 'other'}", "--pictures=1", f"--html={tmp_path / 'page.html'}"]
    assert main(["compare", *runs[1:], *words]) == 0
    assert re.search(r"^A - B .* 3 ", capsys.readouterr().out, re.MULTILINE)
    text = (tmp_path / "page.html").read_text()
    assert re.search(r"<h3>[xyz]</h3>", text)
    assert len(re.findall(PANEL, text)) == 2
    split = next(Path(runs[1]).glob("tests/*/splits.json"))
    forget_run()
    assert run(f"--data.root={tmp_path / 'other'}", f"--data.split.file={split}") == 2
    assert "is of a test on another cohort" in capsys.readouterr().err


@pytest.mark.slow  # wandb starts a process of its own
def test_weights_and_biases_gets_tables_and_overlays(runs, monkeypatch, tmp_path):
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    assert main(["compare", *runs[1:], "--pictures=1", "--wandb=tiny", f"--html={tmp_path / 'page.html'}"]) == 0
    (files,) = tmp_path.glob("wandb/offline-run-*/files")
    tables = {path.name.partition("_")[0]: json.loads(path.read_text()) for path in files.rglob("*.table.json")}
    assert set(tables) == {"leaderboard", "differences", "cases"}
    assert len(tables["leaderboard"]["data"]) == 2
    assert len(tables["cases"]["data"]) == 6
    # Files go by their content: the image is one, truth and untuned masks are too, and each run has its own.
    pictures = [path for path in files.rglob("*.png") if "mask" not in path.parts]
    assert (len(pictures), len(list(files.rglob("*.mask.png")))) == (1, 4)

import io
import json
import os
import sys
import time
from pathlib import Path

import pytest

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.runs.evaluation.data import DataPlan, check_not_trained_on
from medsam_tune.runs.listing import STILL_SECONDS, find_runs
from medsam_tune.runs.run import Run

SUMMARY = {
    "verdict": {"verdict": "better", "text": "Better than the untuned network.", "against": "same_prompts"},
    "test": {"dice": {"mean": 0.91, "ci95": [0.9, 0.92]}, "n_cases": 8},
    "baselines": {"same_prompts": {"dice": {"mean": 0.8, "ci95": None}}},
}
TIME = "2026-01-31_12-00-00"


def make(place, *, summary=None, name=None, old=True, **files):
    folder = Path("runs", place)
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(f"data:\n  root: DIR\nrun:\n  folder: runs\n  name: {name or 'null'}\n  report: true\n")
    if summary:
        (folder / "summary.json").write_text(json.dumps(summary))
    for stem, text in files.items():
        (folder / stem.replace("_", ".")).write_text(text)
    if old:
        before = time.time() - STILL_SECONDS - 60
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (before, before))
    return folder


@pytest.fixture(autouse=True)
def four_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    make(f"hippocampus/lora-wide/{TIME}", summary=SUMMARY, name="wide")
    make(f"own-0a1b2c/lora/{TIME}", error_log="Traceback")
    make(f"own-0a1b2c/lora/{TIME}-2")
    make(f"own-0a1b2c/msa/{TIME}", old=False)


def states():
    return {str(entry.folder.relative_to("runs")): entry.state for entry in find_runs(Path("runs"))}


def test_list_tells_data_recipe_name_state_figures_and_size(capsys):
    assert main(["runs"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["data", "recipe", "name", "state", "Dice", "untuned", "verdict", "size", "folder"]
    size = sum(path.stat().st_size for path in Path("runs/hippocampus").rglob("*") if path.is_file())
    row = ["hippocampus", "lora", "wide", "finished", "0.9100", "0.8000", "better", str(size), "B"]
    assert lines[2] == [*row, f"runs/hippocampus/lora-wide/{TIME}"]
    assert [line[3] for line in lines[2:6]] == ["finished", "failed", "stopped", "running"]
    assert lines[-1][:2] == ["4", "runs,"]


def test_a_test_kept_inside_a_run_is_no_run_of_its_own():
    inner = Path("runs/hippocampus/lora-wide", TIME, "tests", TIME)
    inner.mkdir(parents=True)
    (inner / "config.yaml").write_text("")
    assert len(find_runs(Path("runs"))) == 4


@pytest.mark.parametrize("word", [f"runs/hippocampus/lora-wide/{TIME}", f"lora-wide/{TIME}", "lora-wide", "wide"])
def test_show_begins_with_what_it_is_and_ends_with_what_can_be_done(word, capsys):
    assert main(["runs", "show", word]) == 0
    out = capsys.readouterr().out
    assert out.startswith("Data        hippocampus\nRecipe      lora\nName        wide\nState       finished\n")
    assert "Better than the untuned network.\nTest Dice 0.9100 (95 % interval 0.900 to 0.920) over 8 cases" in out
    assert out.endswith(f"medsam-tune predict runs/hippocampus/lora-wide/{TIME} INPUT -o OUT\n")


def test_word_that_names_several_runs_or_none_is_refused(capsys):
    assert main(["runs", "show", TIME]) == 2
    assert f"{TIME}: names 3 runs, such as" in capsys.readouterr().err
    assert main(["runs", "show", "nothing"]) == 2
    assert "nothing: is no run." in capsys.readouterr().err


def test_clean_needs_a_yes_and_removes_what_came_to_nothing_only(capsys, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO(""))
    assert main(["runs", "clean"]) == 2
    assert "Say --yes" in capsys.readouterr().err
    assert len(states()) == 4
    assert main(["runs", "clean", "--yes"]) == 0
    assert states() == {f"hippocampus/lora-wide/{TIME}": "finished", f"own-0a1b2c/msa/{TIME}": "running"}
    assert not Path("runs/own-0a1b2c/lora").exists()
    assert main(["runs", "clean", "--yes"]) == 0
    assert "no stopped or failed run" in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "left"), [("y\n", 2), ("\n", 4), ("n\n", 4)])
def test_clean_asks_at_a_terminal(answer, left, monkeypatch, capsys):
    stdin = io.StringIO(answer)
    stdin.isatty = lambda: True
    monkeypatch.setattr(sys, "stdin", stdin)
    assert main(["runs", "clean"]) == 0
    assert "Remove these 2 runs" in capsys.readouterr().out
    assert len(states()) == left


def test_clean_removes_a_finished_run_that_is_named_and_leaves_all_others():
    assert main(["runs", "clean", f"lora-wide/{TIME}", "--yes"]) == 0
    assert len(states()) == 3
    assert not Path("runs/hippocampus").exists()


def test_no_folder_of_runs_is_named(capsys):
    assert main(["runs", "--folder=elsewhere"]) == 2
    capsys.readouterr()
    assert main(["runs", "list", "--folder=elsewhere"]) == 2
    assert "elsewhere: no such folder, so there are no runs in it." in capsys.readouterr().err


@pytest.mark.parametrize("word", ["wide", "lora-wide", f"lora-wide/{TIME}"])
def test_every_command_takes_a_run_by_its_name(word, capsys):
    assert Run.open(word).folder == Path("runs/hippocampus/lora-wide", TIME).absolute()
    assert main(["predict", word, "images", "-o", "out"]) == 2
    assert f"{word}: no such run" not in capsys.readouterr().err


@pytest.mark.parametrize("words", [["export", "wide", "--to", "sam"], ["export", "wide", "--to", "onnx", "-o", "x"]])
def test_a_form_of_a_run_that_is_named_is_written_of_its_folder(words, monkeypatch, capsys):
    """The run is found; that it holds no checkpoint is said of its folder."""
    assert main(words) == 2
    assert f"hippocampus/lora-wide/{TIME}" in capsys.readouterr().err


def test_training_data_are_refused_for_a_run_that_is_named_too(tmp_path):
    (tmp_path / "DIR").mkdir()
    plan = DataPlan("DIR", tmp_path / "DIR", {}, "binary")
    with pytest.raises(RecipeError, match=r"^wide: was trained on cases of DIR\. Give wide as DATA too"):
        check_not_trained_on(["wide"], plan)


def test_a_name_of_several_runs_is_not_guessed():
    with pytest.raises(RecipeError, match=r"^lora: names 2 runs, such as runs.*Give the folder of one of them"):
        Run.open("lora")
    with pytest.raises(RecipeError, match="nothing: is no run"):
        Run.open("nothing")

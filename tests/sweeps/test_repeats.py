"""One recipe over seeds or folds, pooled into one summary."""

import json
import re
from pathlib import Path

import pytest

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.sweeps import repeats
from medsam_tune.sweeps.repeats import find_repeats


def test_seeds_and_folds_are_repetitions_and_together_each_with_each():
    found = find_repeats(["--rank=4", "--seeds=0,7"])
    assert (found.over, found.words) == ("seeds", ("--rank=4",))
    assert [(each.label, each.words) for each in found.repetitions] == [
        ("seed0", ("--seed_everything=0",)),
        ("seed7", ("--seed_everything=7",)),
    ]
    both = find_repeats(["--seeds=0,1", "--folds=3"])
    assert both.over == "folds-seeds"
    assert [each.label for each in both.repetitions] == [f"fold{fold}-seed{seed}" for fold in range(3) for seed in range(2)]
    assert both.repetitions[-1].words == ("--data.split.folds=3", "--data.split.fold=2", "--seed_everything=1")


def test_one_fold_and_one_seed_are_one_run():
    assert find_repeats(["--seed=1", "--folds=5", "--fold=2"]) is None
    assert find_repeats(["--data.split.folds=5", "--data.split.fold=2"]) is None


@pytest.mark.parametrize("word", ["--seeds=3", "--seeds=0,0", "--seeds=a,b", "--folds=1", "--folds=many"])
def test_repetitions_that_are_none_are_refused(word):
    with pytest.raises(RecipeError, match=r"^(seeds|folds): expected .* got '"):
        find_repeats([word])


@pytest.fixture
def trainings(tmp_path, monkeypatch):
    """Stand in for the processes: each leaves the run that its words ask for."""
    monkeypatch.chdir(tmp_path)
    Path("tiny.yaml").write_text("data: {root: images}\n")
    started = []

    def run(words):
        started.append(words)
        name = next(word.partition("=")[2] for word in words if word.startswith("--run.name="))
        seed = int(re.search(r"seed_everything=(\d)", " ".join(words))[1])
        folder = Path("runs/own-0a1b2c", f"tiny-{name}", "2026-01-31_12-00-00")
        folder.mkdir(parents=True)
        (folder / "test_cases.csv").write_text(f"case,label,dice,excluded\na,object,0.{5 + seed},false\nb,object,0.9,false\n")
        (folder / "summary.json").write_text(json.dumps({"verdict": {"verdict": "better"}}))
        return 0 if seed < 8 else 2

    monkeypatch.setattr(repeats, "_run", run)
    return started


def test_pooled_folder_holds_each_cases_mean_and_compares_as_a_run(trainings, capsys):
    assert main(["run", "tiny.yaml", "rank=4", "name=wide", "seeds=0,1,3"]) == 0
    assert [words[1:] for words in trainings] == [
        ["--rank=4", f"--seed_everything={seed}", f"--run.name=wide-seed{seed}"] for seed in (0, 1, 3)
    ]
    out = capsys.readouterr().out
    assert "[2/3] seed1" in out
    (folder,) = Path("runs/own-0a1b2c/tiny-wide-seeds").iterdir()
    summary = json.loads((folder / "summary.json").read_text())
    # Case a: (0.5 + 0.6 + 0.8) / 3; runs: 0.7, 0.75, 0.85.
    assert summary["test"]["dice"]["mean"] == pytest.approx((1.9 / 3 + 0.9) / 2)
    assert summary["test"]["n_cases"] == 2
    assert summary["std_over_runs"] == pytest.approx(0.0763763)
    assert [values["dice"] for values in summary["runs"].values()] == pytest.approx([0.7, 0.75, 0.85])
    assert f"Pooled in   {folder}" in out
    assert main(["compare", str(folder), "runs/own-0a1b2c/tiny-wide-seed0/2026-01-31_12-00-00"]) == 0
    assert "A - B" in capsys.readouterr().out


def test_a_training_that_fails_ends_the_repetitions_with_its_status(trainings):
    assert main(["run", "tiny.yaml", "seeds=8,1"]) == 2
    assert len(trainings) == 1
    assert not list(Path("runs").glob("*/tiny-seeds"))


@pytest.mark.slow
def test_folds_of_a_real_training_test_every_case_once(tmp_path, monkeypatch):
    from tests.training.tiny_runs import N_CASES, write_workplace

    write_workplace(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    assert main(["run", "tiny.yaml", "folds=2", "epochs=1", "run.baselines=false", "run.report=false"]) == 0
    (summary,) = Path("runs").glob("*/tiny-folds/*/summary.json")
    assert json.loads(summary.read_text())["test"]["n_cases"] == N_CASES

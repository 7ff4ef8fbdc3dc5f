"""One recipe over seeds or folds, pooled into one summary."""

import json
import re
from pathlib import Path

import pytest

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.sweeps import repeats
from medsam_tune.sweeps.repeats import find_repeats
from tests.processes import start_command, status_of


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


def test_the_same_command_goes_on_where_it_was_stopped(trainings, monkeypatch, capsys):
    whole = repeats._run
    monkeypatch.setattr(repeats, "_run", lambda words: whole(words) if "--seed_everything=0" in words else 2)
    assert main(["run", "tiny.yaml", "seeds=0,1"]) == 2
    # The training of seed 1 was stopped after its first checkpoint.
    begun = Path("runs/own-0a1b2c/tiny-seed1/2026-01-30_00-00-00")
    (begun / "checkpoints").mkdir(parents=True)
    (begun / "checkpoints" / "last.ckpt").touch()
    continued = []

    def go_on(words):
        continued.append(words[-1])
        (begun / "test_cases.csv").write_text("case,label,dice,excluded\na,object,0.6,false\nb,object,0.9,false\n")
        (begun / "summary.json").write_text("{}")
        return 0

    monkeypatch.setattr(repeats, "_run", go_on)
    assert main(["run", "tiny.yaml", "seeds=0,1"]) == 0
    assert continued == [f"--ckpt_path={begun / 'checkpoints/last.ckpt'}"]
    assert "[1/2] seed0: finished earlier in runs/own-0a1b2c/tiny-seed0/" in capsys.readouterr().out
    assert main(["run", "tiny.yaml", "seeds=0,1"]) == 0
    assert len(continued) == 1


def test_another_recipe_or_other_words_are_another_command(trainings):
    assert main(["run", "tiny.yaml", "seeds=0,1"]) == 0
    assert main(["run", "tiny.yaml", "seeds=0,1", "rank=4", "name=b"]) == 0
    assert len(trainings) == 4


def test_pooled_summary_has_what_the_runs_took_and_the_mean_of_each_inference(tmp_path):
    runs = {}
    for seed, dice in enumerate((0.5, 0.7)):
        runs[f"seed{seed}"] = folder = tmp_path / f"run{seed}"
        folder.mkdir()
        (folder / "test_cases.csv").write_text(f"case,label,dice,excluded\na,object,{dice},false\n")
        raw = {"raw": {"dice": {"mean": dice}}}
        facts = {"parameters": {"trained": 3, "total": 9}, "seconds": {"fit": 10 + seed}, "inference": {"test": raw}}
        (folder / "summary.json").write_text(json.dumps(facts))
    summary = repeats.write_pooled(runs, tmp_path / "pooled")
    assert summary["seconds"] == {"fit": 10.5}
    assert summary["parameters"] == {"trained": 3, "total": 9}
    assert summary["mean_dice_by_inference"] == {"raw": pytest.approx(0.6)}


def pooled_of(tmp_path, against):
    """Two seeds that tested the same three patients, held against the untuned network on each."""
    runs = {}
    for seed, name in enumerate(against):
        runs[f"seed{seed}"] = folder = tmp_path / f"run{seed}"
        folder.mkdir()
        rows = [f"{case},object,{dice + seed / 10},false,{dice - 0.5}" for case, dice in (("a", 0.7), ("b", 0.8), ("c", 0.75))]
        (folder / "test_cases.csv").write_text("\n".join(["case,label,dice,excluded,untuned_dice", *rows, ""]))
        (folder / "summary.json").write_text(json.dumps({"verdict": {"verdict": "better", "against": name}}))
    return repeats.write_pooled(runs, tmp_path / "pooled")


def test_the_verdict_over_runs_is_that_of_the_mean_of_each_case(tmp_path):
    summary = pooled_of(tmp_path, ("same_prompts", "same_prompts"))
    # Each case gained 0.5 with the first seed and 0.6 with the second: 0.55 without a spread.
    assert summary["verdict"]["difference"]["mean"] == pytest.approx(0.55)
    assert (summary["verdict"]["verdict"], summary["verdict"]["difference"]["n_cases"]) == ("better", 3)
    assert next(iter(summary)) == "verdict"
    first = repeats.pooled_text(summary, tmp_path).splitlines()[0]
    assert first.startswith("Better than the untuned network under the same prompts: Dice +0.550 (paired over 3 cases")


@pytest.mark.parametrize("against", [("same_prompts", "no_prompt"), (None, None)])
def test_runs_that_were_held_against_others_have_no_verdict_together(tmp_path, against):
    assert "verdict" not in pooled_of(tmp_path, against)


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
    whole = repeats._run

    def run(words):
        # The second is forked, so that everything is imported once less.
        first = "--data.split.fold=0" in words
        return whole(words) if first else status_of(start_command("run", *words, folder=tmp_path))

    monkeypatch.setattr(repeats, "_run", run)
    assert main(["run", "tiny.yaml", "folds=2", "epochs=1", "run.report=false"]) == 0
    (summary,) = Path("runs").glob("*/tiny-folds/*/summary.json")
    found = json.loads(summary.read_text())
    assert found["test"]["n_cases"] == found["verdict"]["difference"]["n_cases"] == N_CASES

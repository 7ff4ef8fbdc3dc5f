"""Runs that were started one by one, as one."""

import json
import re
from pathlib import Path

import pytest
import yaml

from medsam_tune.cli import main

CASES = {"a": "sum-a", "b": "sum-b", "c": "sum-c", "d": "sum-d"}


def make_run(name, dice, *, seed=0, fold=None, folds=None, rank=4, files=CASES, **others):
    """Leave what a tested run leaves: its test cases are those of ``dice``."""
    folder = Path("runs/own-0a1b2c", f"tiny-{name}", "2026-01-31_12-00-00")
    folder.mkdir(parents=True)
    split = {"seed": 0, "folds": folds, "fold": fold}
    tuner = {"class_path": "medsam_tune.tuners.LoRATuner", "init_args": {"rank": rank}}
    config = {"seed_everything": seed, "model": {"tuner": tuner}, "data": {"split": split}, "run": {"name": name}, **others}
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    train, val, *rest = [case for case in files if case not in dice]
    splits = {"train": [train, *rest], "val": [val], "test": list(dice), "how": split, "files": files}
    (folder / "splits.json").write_text(json.dumps(splits))
    rows = "".join(f"{case},object,{value},false\n" for case, value in dice.items())
    (folder / "test_cases.csv").write_text(f"case,label,dice,excluded\n{rows}")
    (folder / "summary.json").write_text(json.dumps({"verdict": {"verdict": "better"}}))
    return str(folder)


@pytest.fixture(autouse=True)
def _here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def pooled_summary(over):
    (folder,) = Path(f"runs/own-0a1b2c/tiny-{over}").iterdir()
    return folder, json.loads((folder / "summary.json").read_text())


def test_folds_of_a_job_array_are_one_run_that_compares(capsys):
    runs = [
        make_run(f"job{fold}", dice, fold=fold, folds=2)
        for fold, dice in enumerate(({"a": 0.5, "b": 0.7}, {"c": 0.9, "d": 0.8}))
    ]
    whole = make_run("whole", {"a": 0.5, "b": 0.5}, files={**CASES, "e": "sum-e", "f": "sum-f"})
    assert main(["runs", "pool", *reversed(runs)]) == 0
    folder, summary = pooled_summary("folds")
    assert list(summary["runs"]) == ["fold0", "fold1"]
    assert [values["dice"] for values in summary["runs"].values()] == pytest.approx([0.6, 0.85])
    assert (summary["test"]["n_cases"], summary["test"]["dice"]["mean"]) == (4, pytest.approx(0.725))
    assert f"Pooled in   {folder}" in capsys.readouterr().out
    assert main(["compare", str(folder), str(folder.parent.parent / "tiny-job0/2026-01-31_12-00-00")]) == 2
    assert "its 2 test cases are not the 4" in capsys.readouterr().err
    assert main(["compare", whole, runs[0]]) == 0


def test_seeds_weigh_each_case_once_and_where_a_run_trained_is_no_difference():
    runs = [
        make_run("one", {"a": 0.5, "b": 0.7}, seed=0, trainer={"max_epochs": 3, "devices": 1}),
        make_run("two", {"a": 0.7, "b": 0.9}, seed=1, trainer={"max_epochs": 3, "devices": 4, "strategy": "ddp"}),
    ]
    assert main(["runs", "pool", *runs]) == 0
    _, summary = pooled_summary("seeds")
    assert list(summary["runs"]) == ["seed0", "seed1"]
    assert (summary["test"]["n_cases"], summary["test"]["dice"]["mean"]) == (2, pytest.approx(0.7))
    assert summary["std_over_runs"] == pytest.approx(0.2 / 2**0.5)


def test_folds_and_seeds_together_stand_in_the_order_of_their_numbers():
    dice = {0: {"a": 0.5}, 10: {"b": 0.7}, 2: {"c": 0.9}}
    runs = [make_run(f"{fold}-{seed}", dice[fold], fold=fold, folds=11, seed=seed) for fold in dice for seed in (1, 0)]
    assert main(["runs", "pool", *runs]) == 0
    _, summary = pooled_summary("folds-seeds")
    assert list(summary["runs"]) == [f"fold{fold}-seed{seed}" for fold in (0, 2, 10) for seed in (0, 1)]


def test_a_fold_that_is_not_there_is_named(capsys):
    runs = [make_run(f"fold{fold}", dice, fold=fold, folds=4) for fold, dice in ((0, {"a": 0.5}), (3, {"b": 0.7}))]
    assert main(["runs", "pool", *runs]) == 0
    assert "WARNING: no run of fold 1, 2 of 4 is among them" in " ".join(capsys.readouterr().out.split())


@pytest.mark.parametrize(
    ("second", "message"),
    [
        (
            {"seed": 1, "rank": 8},
            "differs from .* in more than seed and fold: model.tuner.rank is 8 for 4. Pool runs of one recipe",
        ),
        ({"seed": 1, "trainer": {"max_epochs": 9}}, "in more than seed and fold: trainer.max_epochs is 9 for None"),
        ({"seed": 0}, "two/.*: has the fold and seed of .*one/.* Name one of the two"),
        ({"seed": 1, "files": {**CASES, "c": "other"}}, r"its data are not those of .*: 1 cases have other files \(c\)"),
        ({"seed": 1, "files": {**CASES, "e": "sum-e"}}, r"its data are not those of .*: 1 cases are new \(e\)"),
    ],
)
def test_runs_that_do_not_belong_together_are_refused(second, message, capsys):
    runs = [make_run("one", {"a": 0.5, "b": 0.7}), make_run("two", {"a": 0.5, "b": 0.7}, **second)]
    assert main(["runs", "pool", *runs]) == 2
    assert not list(Path("runs/own-0a1b2c").glob("*seeds"))
    assert re.search(message, " ".join(capsys.readouterr().err.split()))


def test_one_run_and_one_that_was_not_tested_are_refused(capsys):
    one, two = make_run("one", {"a": 0.5}), make_run("two", {"a": 0.5}, seed=1)
    assert main(["runs", "pool", one]) == 2
    assert "pool: expected two runs or more, got 1" in capsys.readouterr().err
    Path(two, "test_cases.csv").unlink()
    assert main(["runs", "pool", one, two]) == 2
    assert "has no test_cases.csv, so it is no run that was tested" in capsys.readouterr().err

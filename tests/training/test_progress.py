"""What a training says while it runs, with and without a terminal."""

import re

import pytest
from rich.console import Console

from medsam_tune.training import console, progress
from medsam_tune.training.progress import StageBar, readable

from .tiny_runs import build, run


def told(capsys):
    return capsys.readouterr().out.splitlines()


def test_first_lines_say_what_is_trained_on_what_where_and_how_long_before_anything_is_computed(workplace, capsys):
    assert run("--run.baselines=false", "--run.report=false", "--trainer.max_epochs=3") == 0
    lines = told(capsys)
    expected = [
        r"Data        your folder: 8 cases, 20 images; target binary \(object\)",
        r"Split       train 4 cases \(11 images\), validation 1 \(2\), test 3 \(7\)",
        r"Device      cpu, precision 32-true, \d+ threads?",
        r"Weights     random_tiny \(sha256 [0-9a-f]{12}\)",
        r"Trained     1,168 of 104,060 parameters \(1\.12%\): prompt_encoder\.trunk",
        r"Plan        3 epochs of 6 batches, 18 steps",
        r"Run folder  .*/runs/\S+",
        r"Embeddings  13 cached, 13 of them now \(\d+:\d\d\)",
        r"Estimate    ~\d+:\d\d for the steps alone, at \d+\.\d\d s a step",
        r"epoch +loss +val Dice +best +lr +time +left",
        *(rf"{epoch}/3 +1\.\d{{4}} +0\.\d{{4}} +0\.\d{{4}} +1\.0e-03 +\d+:\d\d +~\d+:\d\d" for epoch in (1, 2)),
        r"3/3 +1\.\d{4} +0\.\d{4} +0\.\d{4} +1\.0e-03 +\d+:\d\d",
    ]
    for pattern, line in zip(expected, lines, strict=False):
        assert re.fullmatch(pattern, line), (pattern, line)
    assert max(len(line) for line in lines if not line.startswith("Run folder")) <= 80


def test_best_so_far_is_the_highest_and_an_epoch_without_a_validation_has_none(workplace, capsys):
    words = (
        "--trainer.max_epochs=4",
        "--trainer.check_val_every_n_epoch=2",
        "--model.optimizer=torch.optim.SGD",
        "--model.optimizer.lr=9.0",
    )
    assert run("--run.baselines=false", "--run.report=false", *words) == 0
    rows = [line.split() for line in told(capsys) if re.match(r"\d/4 ", line)]
    assert [row[2] for row in rows][::2] == ["-", "-"]
    assert rows[0][3] == "-"
    assert float(rows[3][3]) == max(float(rows[1][2]), float(rows[3][2]))


def test_a_long_training_has_a_line_for_each_validation_only(workplace, capsys, monkeypatch):
    monkeypatch.setattr(progress, "MOST_LINES", 3)
    # 24 steps of the 6 in an epoch end in the fourth of them.
    words = ("--trainer.max_epochs=40", "--trainer.max_steps=24", "--trainer.check_val_every_n_epoch=2")
    assert run("--run.baselines=false", "--run.report=false", *words) == 0
    assert [line.split()[0] for line in told(capsys) if re.match(r"\d/4 ", line)] == ["2/4", "4/4"]


def test_a_continued_training_keeps_its_best(workplace, capsys):
    quick = ("--run.baselines=false", "--run.report=false")
    assert run(*quick, "--trainer.max_epochs=2") == 0
    before = [line.split() for line in told(capsys) if re.match(r"\d/2 ", line)]
    assert run(*quick, "--trainer.max_epochs=3", "--ckpt_path=last") == 0
    lines = told(capsys)
    (row,) = [line.split() for line in lines if re.match(r"\d/3 ", line)]
    assert float(row[3]) == max(float(other[2]) for other in [*before, row])
    assert len([line for line in lines if line.startswith("Continuing")]) == 1


def test_the_bar_fits_eighty_columns_and_leaves_nothing_behind(workplace, monkeypatch, capsys):
    terminal = Console(force_terminal=True, width=80, legacy_windows=False, soft_wrap=True, highlight=False)
    for module in (progress, console):
        monkeypatch.setattr(module, "console", terminal)
    assert run("--run.baselines=false", "--run.report=false", "--trainer.enable_progress_bar=true") == 0
    out = capsys.readouterr().out
    drawn = [re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", part) for part in re.split(r"\r|\n|\x1b\[2K", out)]
    bars = [part for part in drawn if "\N{BOX DRAWINGS HEAVY HORIZONTAL}" in part]
    assert {"Epoch 1", "Validation", "Test"} <= {re.match(r"\w+( \d)?", bar)[0] for bar in bars}
    assert max(map(len, bars)) <= 80
    assert out.count("\x1b[2K") >= 3


@pytest.mark.parametrize(("given", "ours", "theirs"), [("", 1, 0), ("=false", 0, 0), ("+=TQDMProgressBar", 0, 1)])
def test_a_bar_of_the_users_takes_the_place_of_ours(workplace, given, ours, theirs):
    key = "callbacks" if "TQDM" in given else "enable_progress_bar"
    value = given.replace("TQDM", "lightning.pytorch.callbacks.TQDM") or "=true"
    trainer = build(f"--trainer.{key}{value}", "--trainer.enable_progress_bar=true" if theirs else "--run.report=false").trainer
    assert sum(isinstance(callback, StageBar) for callback in trainer.callbacks) == ours
    assert (trainer.progress_bar_callback is not None) == bool(theirs)


def test_names_of_figures_are_read_by_people():
    assert [readable(name) for name in ("val/dice", "val/iou", "val/loss")] == ["val Dice", "val IoU", "val loss"]

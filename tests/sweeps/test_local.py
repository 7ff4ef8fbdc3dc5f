"""Sweeps on this machine: with a stand-in for `medsam-tune run` that finishes at once."""

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from medsam_tune.cli import main
from medsam_tune.errors import RecipeError
from medsam_tune.runs.recipe_files import find_recipe
from medsam_tune.sweeps import local as sweep_module
from medsam_tune.sweeps import read_sweep
from medsam_tune.sweeps.local import LocalSweep, _values, run_sweep
from medsam_tune.sweeps.trainings import locked

pytest.importorskip("optuna")

# Writes what a finished run leaves behind. Dice peaks at rank 4; rank 13 fails; one value of val/dice an epoch.
STAND_IN = """
import json, os, pathlib, subprocess, sys, time
words = dict(word.lstrip("-").split("=", 1) for word in sys.argv[3:])
rank = int(words["model.tuner.rank"])
run = pathlib.Path(words["run.folder"]) / "data" / "recipe" / "now"
if rank == 77:  # trains for a minute, with a process of its own
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
    pathlib.Path(words["run.folder"], "pids").write_text(f"{os.getpid()} {child.pid}")
    time.sleep(60)
(run / "export").mkdir(parents=True)
if rank == 13:
    sys.exit("error: rank 13 is unlucky")
dice = 0.9 - abs(rank - 4) / 100
rows = ["epoch,step,val/dice"]
for epoch in range(int(words.get("epochs", 2))):
    rows.append(f"{epoch},{epoch},{dice - 0.1 / (epoch + 1)}")
    (run / "metrics.csv").write_text("\\n".join(rows) + "\\n")
    time.sleep(float(words.get("pause", 0)))
(run / "export" / "trained.safetensors").write_bytes(b"x" * 100 * rank)
summary = {"test": {"dice": {"mean": dice, "ci95": [dice - 0.05, dice + 0.05]}}, "parameters": {"trained": 1000 * rank},
           "seconds": {"fit": 1.5}}
(run / "summary.json").write_text(json.dumps(summary))
(run / "words.json").write_text(json.dumps([sys.argv[1:], {k: os.environ.get(k) for k in ("WANDB_MODE", "WANDB_RUN_GROUP")}]))
"""
FILE = {
    "program": "medsam-tune",
    "command": ["${env}", "medsam-tune", "run", "recipes/lora.yaml", "${args}"],
    "method": "grid",
    "metric": {"name": "val/dice", "goal": "maximize"},
    "parameters": {"model.tuner.rank": {"values": [2, 4, 8]}},
}


@pytest.fixture
def start(tmp_path, monkeypatch):
    """Return a function that runs a sweep with some keys of the file, or some settings, changed."""
    program = tmp_path / "stand_in.py"
    program.write_text(STAND_IN)
    monkeypatch.setattr(sweep_module, "PROGRAM", (sys.executable, "-I", "-S", str(program)))
    monkeypatch.setattr(sweep_module, "POLL_SECONDS", 0.02)
    monkeypatch.delenv("WANDB_MODE", raising=False)

    def run(settings=None, **changes):
        path = tmp_path / "rank.yaml"
        path.write_text(yaml.safe_dump(FILE | changes))
        return run_sweep(replace(LocalSweep(read_sweep(path), tmp_path / "sweep"), **(settings or {})))

    return run


def rows(tmp_path):
    with (tmp_path / "sweep" / "sweep.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_grid_runs_every_value_once_and_ends_in_one_table_and_one_plot(start, tmp_path):
    lines = []
    ended = start({"report": lines.append, "overrides": ["--trainer.max_steps=4"]})
    table = rows(tmp_path)
    assert [(row["model.tuner.rank"], row["state"], row["trained"], row["bytes"]) for row in table] == [
        ("2", "complete", "2000", "200"),
        ("4", "complete", "4000", "400"),
        ("8", "complete", "8000", "800"),
    ]
    # The best of two epochs: 0.9 - 0.05 at rank 4.
    assert [row["val/dice"] for row in table] == ["0.83", "0.85", "0.81"]
    assert [row["test dice"] for row in table] == ["0.88", "0.9", "0.86"]
    assert ended.finished == 3
    assert ended.table == (tmp_path / "sweep" / "sweep.txt").read_text().rstrip("\n")
    assert (tmp_path / "sweep" / "sweep.png").read_bytes().startswith(b"\x89PNG")
    assert lines[1] == "run 1 (rank=4) val/dice 0.8500"
    words, environ = json.loads((tmp_path / "sweep/runs/0001/data/recipe/now/words.json").read_text())
    assert words[:4] == ["run", "recipes/lora.yaml", "--model.tuner.rank=4", "--trainer.max_steps=4"]
    assert environ == {"WANDB_MODE": "offline", "WANDB_RUN_GROUP": "rank"}


def test_files_of_wandb_go_to_the_folder_of_each_run(start, tmp_path):
    logger = "--trainer.logger=lightning.pytorch.loggers.WandbLogger"
    start({"trials": 1}, command=[*FILE["command"], logger])
    words, _ = json.loads((tmp_path / "sweep/runs/0000/data/recipe/now/words.json").read_text())
    assert words[-1] == f"--trainer.logger.init_args.save_dir={tmp_path / 'sweep/runs/0000'}"


def test_second_call_runs_only_what_is_missing(start, tmp_path):
    start({"trials": 2})
    assert [row["model.tuner.rank"] for row in rows(tmp_path)] == ["2", "4"]
    stamp = (tmp_path / "sweep/runs/0000/data/recipe/now/summary.json").stat().st_mtime_ns
    start()
    assert sorted(row["model.tuner.rank"] for row in rows(tmp_path)) == ["2", "4", "8"]
    assert (tmp_path / "sweep/runs/0000/data/recipe/now/summary.json").stat().st_mtime_ns == stamp
    start()
    assert len(rows(tmp_path)) == 3


def test_killed_run_is_done_again(start, tmp_path, monkeypatch):
    def killed(*arguments):
        raise KeyboardInterrupt

    with monkeypatch.context() as context:
        context.setattr(sweep_module, "_run_process", killed)
        with pytest.raises(KeyboardInterrupt):
            start()
    start()
    done = [row["model.tuner.rank"] for row in rows(tmp_path) if row["state"] == "complete"]
    assert sorted(done) == ["2", "4", "8"]


def test_run_that_was_cut_off_goes_on_from_its_checkpoint_in_its_folder_and_has_one_row(start, tmp_path, monkeypatch):
    original = sweep_module._run_process

    def killed(trial, local, trainings, values, place):
        if trial.number == 1:
            (place / "data/recipe/now/checkpoints").mkdir(parents=True)
            (place / "data/recipe/now/checkpoints/last.ckpt").write_bytes(b"")
            raise KeyboardInterrupt
        return original(trial, local, trainings, values, place)

    with monkeypatch.context() as context:
        context.setattr(sweep_module, "_run_process", killed)
        with pytest.raises(KeyboardInterrupt):
            start(method="random", run_cap=3, parameters={"model.tuner.rank": {"min": 1, "max": 1000}})
    start(method="random", run_cap=3, parameters={"model.tuner.rank": {"min": 1, "max": 1000}})
    table = rows(tmp_path)
    assert [(row["run"], row["state"]) for row in table] == [(number, "complete") for number in "012"]
    assert len({row["model.tuner.rank"] for row in table}) == 3
    assert sorted(path.name for path in (tmp_path / "sweep/runs").iterdir()) == ["0000", "0001", "0002"]
    words = [json.loads(path.read_text())[0] for path in sorted((tmp_path / "sweep").rglob("words.json"))]
    assert ["--ckpt_path=auto" in each for each in words] == [False, True, False]


@pytest.mark.parametrize("rest", ["", '{"op_code":0,"wor'])
def test_lock_and_half_a_line_that_a_kill_left_at_the_journal_do_not_stop_the_next_call(start, tmp_path, rest):
    start({"trials": 1})
    journal = tmp_path / "sweep" / "study.journal"
    with journal.open("a") as file:
        file.write(rest)
    journal.with_name("study.journal.lock").symlink_to("sweep/study.journal")
    start()
    assert [row["state"] for row in rows(tmp_path)] == ["complete"] * 3


def test_failed_run_is_named_and_the_sweep_goes_on(start, tmp_path):
    lines = []
    start({"report": lines.append}, parameters={"model.tuner.rank": {"values": [13, 4]}})
    failed, complete = rows(tmp_path)
    assert (failed["state"], complete["state"]) == ("fail", "complete")
    assert "exit status 1: error: rank 13 is unlucky" in failed["folder"]
    assert lines[0].startswith("run 0 (rank=13) failed: exit status 1")


def dies(pid):
    """Wait for a process that was sent SIGKILL; the kernel takes it away a moment later."""
    until = time.monotonic() + 60
    while is_alive(pid) and time.monotonic() < until:
        time.sleep(0.01)
    return not is_alive(pid)


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


@pytest.mark.parametrize("jobs", [1, 2])
@pytest.mark.parametrize(("number", "raised"), [(signal.SIGTERM, SystemExit), (signal.SIGINT, KeyboardInterrupt)])
def test_signal_ends_every_training_with_all_it_started_and_then_the_sweep(start, tmp_path, number, raised, jobs):
    places = [tmp_path / f"sweep/runs/{run:04d}/pids" for run in range(jobs)]

    def send():
        until = time.monotonic() + 60
        while time.monotonic() < until and not all(place.is_file() and place.read_text() for place in places):
            time.sleep(0.02)
        os.kill(os.getpid(), number)

    sender = threading.Thread(target=send)
    sender.start()
    with pytest.raises(raised) as caught:
        start({"jobs": jobs}, parameters={"model.tuner.rank": {"value": 77}, "a": {"values": [1, 2, 3]}})
    sender.join()
    assert getattr(caught.value, "code", 143) == 143
    pids = [int(pid) for place in places for pid in place.read_text().split()]
    assert len(pids) == 2 * jobs
    assert all(dies(pid) for pid in pids)
    assert not any(row["state"] == "complete" for row in rows(tmp_path))
    assert len(list((tmp_path / "sweep/runs").iterdir())) == jobs


def test_training_ends_when_the_process_that_started_it_is_killed_outright(tmp_path):
    code = (
        "import sys, time; from medsam_tune.sweeps.trainings import Trainings, locked\n"
        "from pathlib import Path\n"
        "with locked(Path(sys.argv[1])) as lock, open(sys.argv[1] + '/log', 'w') as log:\n"
        "    with Trainings(lock).start([sys.executable, '-c', 'import time; time.sleep(60)'], log, {}) as training:\n"
        "        print(training.pid, flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE) as sweep:
        training = int(sweep.stdout.readline())
        assert is_alive(training)
        sweep.kill()
    assert dies(training)


def test_second_sweep_on_a_folder_is_refused_while_the_first_or_its_training_works(start, tmp_path):
    with locked(tmp_path / "sweep") as lock:
        with pytest.raises(RecipeError, match=rf"sweep: another sweep works here \(process {os.getpid()}, .*another --folder"):
            start()
        training = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"], pass_fds=(lock,))
    with pytest.raises(RecipeError, match="or a training that it started"):
        start()
    training.kill()
    training.wait()
    assert start({"trials": 1}).finished == 1


def test_sweep_whose_runs_all_fail_has_none_finished(start, tmp_path):
    assert start(parameters={"model.tuner.rank": {"values": [13]}}).finished == 0
    assert not (tmp_path / "sweep" / "sweep.png").exists()


def test_folder_of_another_sweep_is_refused(start):
    start({"trials": 1})
    with pytest.raises(RecipeError, match=r"sweep: was begun with another parameters than rank has now\. Give another"):
        start(parameters={"model.tuner.rank": {"values": [2, 4]}})


def test_damaged_journal_is_named(start, tmp_path):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "study.journal").write_bytes(b"\xaa\xbb garbage\n")
    with pytest.raises(RecipeError, match=r"study\.journal: cannot be read as the journal of a sweep"):
        start()


def test_file_in_the_folders_place_is_named(start, tmp_path):
    (tmp_path / "sweep").touch()
    with pytest.raises(RecipeError, match=r"sweep: could not be written .*choose another folder"):
        start()


def test_two_jobs_do_the_same_grid(start, tmp_path):
    start({"jobs": 2})
    found = sorted((row["model.tuner.rank"], row["test dice"]) for row in rows(tmp_path))
    assert found == [("2", "0.88"), ("4", "0.9"), ("8", "0.86")]


@pytest.mark.parametrize("method", ["random", "bayes"])
def test_range_is_sampled_within_its_bounds_as_often_as_the_cap_says(start, tmp_path, method):
    start(method=method, run_cap=4, parameters={"model.tuner.rank": {"min": 1, "max": 12}})
    ranks = [int(row["model.tuner.rank"]) for row in rows(tmp_path)]
    assert len(ranks) == 4
    assert all(1 <= rank <= 12 for rank in ranks)


def test_hyperband_stops_the_worse_of_two_runs_and_keeps_its_row(start, tmp_path):
    start(
        {"overrides": ["--epochs=9", "--pause=0.04"]},
        parameters={"model.tuner.rank": {"values": [4, 50, 60, 70, 80, 90]}},
        early_terminate={"type": "hyperband", "min_iter": 1, "max_iter": 9, "eta": 3},
    )
    states = {row["model.tuner.rank"]: row["state"] for row in rows(tmp_path)}
    assert states["4"] == "complete"
    assert "pruned" in states.values()


def test_random_without_an_end_is_refused(start):
    with pytest.raises(RecipeError, match=r"--trials: method random has no end\. Give --trials=N"):
        start(method="random")


def test_command_runs_a_file_with_overrides_in_all_spellings(start, tmp_path, monkeypatch, capsys):
    start({"trials": 1})
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "rank.yaml", "--local", "--trials=1", "--epochs", "1", "pause=0", "--folder", "other"]) == 0
    words, _ = json.loads((tmp_path / "other/runs/0000/data/recipe/now/words.json").read_text())
    assert words[3:5] == ["--epochs=1", "--pause=0"]
    assert "model.tuner.rank" in capsys.readouterr().out


def test_command_without_a_finished_run_ends_with_1(start, tmp_path, monkeypatch, capsys):
    start({"trials": 1}, parameters={"model.tuner.rank": {"value": 13}})
    monkeypatch.chdir(tmp_path)
    assert main(["sweep", "rank.yaml", "--local", "--folder=sweep"]) == 1
    assert "error: sweep: no run of the sweep has finished" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--trials=0", "--trials=-3", "--jobs=0", "--jobs=-1"])
def test_numbers_that_run_nothing_are_refused(option, capsys):
    assert main(["sweep", "lora_rank", "--local", option]) == 2
    name, _, value = option.partition("=")
    assert capsys.readouterr().err == f"error: {name}: expected a number of at least 1, got {value}.\n"


def test_sweep_over_a_recipe_that_does_not_exist_is_refused_at_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("a.yaml").write_text(yaml.safe_dump(FILE | {"command": ["medsam-tune", "run", "lorra.yaml", "${args}"]}))
    assert main(["sweep", "a.yaml", "--local"]) == 2
    assert capsys.readouterr().err.startswith("error: lorra.yaml: no such recipe. Did you mean lora")
    assert not Path("runs").exists()


@pytest.mark.parametrize("name", ["adapter_rank", "lora_rank"])
def test_bundled_sweeps_vary_six_ranks_of_a_bundled_recipe(name):
    sweep = read_sweep(find_recipe(f"sweeps/{name}"))
    assert [parameter.values for parameter in sweep.parameters.values()] == [(1, 2, 4, 8, 16, 32)]
    assert find_recipe(sweep.command[3]).is_file()


@pytest.mark.parametrize("text", ["", "epo", "epoch,step,val/dice\n", "epoch,step\n0,1\n"])
def test_metrics_that_are_being_written_anew_are_none_yet(tmp_path, text):
    file = tmp_path / "data/recipe/now/metrics.csv"
    assert _values(tmp_path, "val/dice") == []
    file.parent.mkdir(parents=True)
    file.write_text(text)
    assert _values(tmp_path, "val/dice") == []
    file.write_text("epoch,step,val/dice\n0,1,0.5\n1,2,\n2,3,0.75\n")
    assert _values(tmp_path, "val/dice") == [0.5, 0.75]

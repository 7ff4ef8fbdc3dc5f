"""The benchmark command, as a reader types it, on networks small enough for a test."""

from __future__ import annotations

import json
import os
import runpy
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import volumes
from tests.processes import status_of, warm

RUN = Path(__file__).resolve().parents[1] / "benchmarks" / "run.py"


def run(*words, folder):
    """Type the command in a process that has imported what takes seconds; return its exit status and what it said."""
    process = warm().Process(target=_be_the_command, args=(words, folder))
    process.start()
    return status_of(process), (folder / "said.txt").read_text(), (folder / "complained.txt").read_text()


def _be_the_command(words, folder):
    for number, name in ((1, "said.txt"), (2, "complained.txt")):
        os.dup2(os.open(folder / name, os.O_WRONLY | os.O_CREAT), number)
    sys.argv, sys.path[:0] = [str(RUN), *words], [str(RUN.parent)]
    runpy.run_path(str(RUN), run_name="__main__")


@pytest.mark.slow
def test_rows_compare_outputs_and_are_written_with_machine_and_commit(tmp_path):
    rows = ("P1", "P4", "P5", "P7", "P10", "P11", "P13")
    status, said, complained = run(*rows, "--tiny", "--json", str(tmp_path / "found.json"), folder=tmp_path)
    assert status == 0, complained
    written = json.loads((tmp_path / "found.json").read_text())
    assert {"device", "commit", "torch", "threads"} <= written["machine"].keys()
    assert list(written["rows"]) == list(rows)
    assert written["rows"]["P5"]["error"] < 1e-6
    assert written["rows"]["P1"]["error"] < 1e-3
    assert all(row["ratio"] > 0 and row["verdict"] for row in written["rows"].values())
    assert len(said.splitlines()) == 8


@pytest.mark.slow
def test_a_recipe_is_measured_in_a_process_of_its_own_with_the_network_that_it_has(tmp_path):
    asked = ("recipes", "--only", "decoder", "instances", "--with", "data.batch_size=3", "--tiny")
    status, _, complained = run(*asked, "--json", str(tmp_path / "found.json"), folder=tmp_path)
    assert status == 0, complained
    rows = json.loads((tmp_path / "found.json").read_text())["rows"]["recipes"]["extra"]["recipes"]
    # The second is for any folder of images, and gets one.
    assert list(rows) == ["decoder, 64 px, tiny", "instances, 64 px, tiny"]
    for row in rows.values():
        assert row["batch"] == 3
        assert row["peak_mb"] > 0
        assert row["step_s"] > 0
        assert row["learn_without_gradient"] == row["frozen_with_gradient"] == row["frozen_in_optimizer"] == 0


@pytest.mark.parametrize(
    ("words", "expected"), [(("P99",), "P99: no such row"), (("G1",), "G1: not measured on cpu. Set --device cuda")]
)
def test_a_row_that_is_not_there_is_refused_before_anything_runs(words, expected, monkeypatch):
    monkeypatch.setattr(sys, "argv", [str(RUN), *words])
    monkeypatch.syspath_prepend(RUN.parent)
    with pytest.raises(SystemExit, match=expected):
        runpy.run_path(str(RUN), run_name="__main__")


def test_the_comparison_of_ways_through_a_volume_averages_seeds_and_pairs_patients(tmp_path):
    seeds = {"slice by slice": ((0.6, 0.8), (0.8, 0.8)), "SD-Trans": ((0.7, 0.9), (0.9, 0.9))}
    for way, rows in seeds.items():
        for seed, (first, second) in enumerate(rows):
            content = {"way": way, "seed": seed, "steps": 10 + seed, "dice": {"a": first, "b": second}}
            (tmp_path / f"{way}_{seed}.json").write_text(json.dumps(content))
    *_, plain, mixed = volumes.table(tmp_path).splitlines()
    assert plain.startswith("| slice by slice | 2 | 10 | 0.750 (")
    assert plain.endswith("| - |")
    # Paired by patient the gain is 0.1 in both, so its interval has no width.
    assert mixed.endswith("| 0.100 (0.100 to 0.100) |")


def test_the_dice_of_a_volume_counts_the_pixels_of_all_its_slices_together():
    counts = volumes.Counts()
    full, empty = torch.ones(2, 2, dtype=torch.bool), torch.zeros(2, 2, dtype=torch.bool)
    counts.add("a", full, full)
    counts.add("a", full, empty)
    counts.add("a", empty, empty)
    assert counts.dice() == {"a": 2 * 4 / (8 + 4)}


@pytest.mark.parametrize(
    ("script", "words", "rows"),
    [
        ("cache.py", ("--images", "1"), ("decoder only, tight box, CPU", "AutoSAM, HarDNet-39ds, CPU")),
        ("objects.py", ("--objects", "2"), ("      2   wall", "      2    CPU")),
    ],
)
def test_a_script_that_compares_two_ways_finds_the_same_loss_and_prints_their_ratio(script, words, rows, monkeypatch, capsys):
    path = RUN.with_name(script)
    monkeypatch.setattr(sys, "argv", [str(path), *words, "--weights", "random_tiny", "--steps", "1", "--threads", "1"])
    runpy.run_path(str(path), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    for row in rows:
        (line,) = [each for each in lines if each.startswith(row)]
        assert float(line.split()[-1]) > 0

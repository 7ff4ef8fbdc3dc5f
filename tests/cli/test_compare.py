import csv
import json
import re
from pathlib import Path

import pytest

from medsam_tune.cli import main

CASES = {"a": 0.9, "b": 0.8, "c": 0.6, "d": 0.7}


def make(name, cases=CASES, *, label="object", files=None):
    folder = Path(name)
    folder.mkdir(parents=True)
    rows = [f"{case},{label},{dice},false" for case, dice in cases.items()]
    (folder / "test_cases.csv").write_text("\n".join(["case,label,dice,excluded", *rows, ""]))
    if files:
        split = {"train": ["t"], "val": ["v"], "test": sorted(cases), "how": {}, "files": files}
        (folder / "splits.json").write_text(json.dumps(split))
    return name


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def refused(capsys, *runs):
    assert main(["compare", *runs]) == 2
    return capsys.readouterr().err


def test_two_runs_are_compared_by_case_on_the_console_and_in_a_table(capsys):
    lower = {"a": 0.8, "b": 0.6, "c": 0.6, "d": 0.65}
    assert main(["compare", make("x"), make("y", lower), "--csv=out/pairs.csv"]) == 0
    out = capsys.readouterr().out
    assert out.splitlines()[2].split()[:2] == ["A", "0.7500"]
    line = next(line for line in out.splitlines() if line.startswith("A - B"))
    # 0.1, 0.2, 0, 0.05: mean 0.0875, standard deviation 0.0854, t of three degrees of freedom 3.182.
    assert out.splitlines()[-2] == "comparison.html"
    assert " ".join(line.split()) == "A - B +0.0875 -0.0484 to +0.2234 (t) 4 0.1328 not told from chance"
    assert "Holm" not in out
    (row,) = csv.DictReader(Path("out/pairs.csv").read_text().splitlines())
    assert (row["first"], row["second"], row["n_cases"], row["ci95_method"]) == ("x", "y", "4", "t")
    assert float(row["difference"]) == pytest.approx(0.0875)


def test_page_holds_leaderboard_costs_and_cases_in_one_file(capsys):
    names = [
        make(f"runs/{name}/one", {case: dice - loss for case, dice in CASES.items()}) for name, loss in (("x", 0.1), ("y", 0))
    ]
    for name, trained in zip(names, (1000, 20000), strict=True):
        summary = {"parameters": {"trained": trained, "total": 10**6}, "seconds": {"fit": trained / 10}}
        (Path(name) / "summary.json").write_text(json.dumps(summary))
    assert main(["compare", *names, "-o", "out/board.html", "--pictures=0"]) == 0
    text = Path("out/board.html").read_text()
    assert re.findall(r"<td>([AB]: \w)</td>", text) == ["B: y", "A: x"]  # the best first
    assert "<span>-0.1000</span> <span>(-0.100 to -0.100)</span>" in text
    assert "20,000" in text
    assert text.count('<svg class="plot"') == 3  # two costs, and one run over the other
    assert '<circle class="dot"' in text
    assert not re.search(r"(src|href)=.https?:", text)
    assert "prefers-color-scheme: dark" in text


def test_a_run_whose_network_is_gone_is_compared_without_pictures():
    assert main(["compare", make("x"), make("y")]) == 0
    assert "Worst cases" not in Path("comparison.html").read_text()


def test_fewer_than_no_pictures_are_refused(capsys):
    assert "--pictures: must be at least 0" in refused(capsys, make("x"), make("y"), "--pictures=-1")


def test_three_runs_are_three_pairs_with_holms_correction(capsys):
    runs = [
        make(name, {case: dice - loss for case, dice in CASES.items()}) for name, loss in (("x", 0), ("y", 0.1), ("z", 0.3))
    ]
    assert main(["compare", *runs]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line[:5] for line in lines if " - " in line[:5]] == ["A - B", "A - C", "B - C"]
    assert any("p (Holm)" in line for line in lines)


def test_runs_over_other_cases_labels_or_files_are_refused_and_the_difference_named(capsys):
    first = make("x", files=dict.fromkeys(CASES, "1"))
    other = {case: 0.5 for case in "abce"}
    said = refused(capsys, first, make("other", other))
    assert "other: its 4 test cases are not the 4 of x" in said
    assert "only x has d; only other has e" in said
    assert "only x has object; only parts has left" in refused(capsys, first, make("parts", label="left"))
    said = refused(capsys, first, make("changed", files={**dict.fromkeys(CASES, "1"), "b": "2"}))
    assert "changed: 1 of its test cases have other files than those of x (b)" in said


def test_a_run_that_was_not_tested_and_one_run_alone_are_refused(capsys):
    Path("untested").mkdir()
    assert "untested: has no test_cases.csv" in refused(capsys, make("x"), "untested")
    assert "compare: expected two runs or more, got 1" in refused(capsys, "x", "x")

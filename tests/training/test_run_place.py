"""Runs lie under their data, their recipe and their name; what a folder is called stays out of the path."""

from pathlib import Path

import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.training.run_place import RUNS, data_name, run_place
from medsam_tune.training.settings import RunSettings

from .tiny_runs import build, only_run, run


def test_sample_goes_by_its_name_and_a_folder_by_a_checksum_of_its_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert data_name("sample:hippocampus") == "hippocampus"
    assert data_name("DOE^JANE") == data_name(str(tmp_path / "DOE^JANE")) != data_name("DOE^JOHN")
    assert data_name("DOE^JANE").startswith("own-")
    assert "DOE" not in data_name("DOE^JANE")


def test_name_of_a_run_stands_behind_the_recipe():
    assert run_place("sample:carotid", "lora") == Path("carotid/lora")
    assert run_place("sample:carotid", "lora", "wide") == Path("carotid/lora-wide")


@pytest.mark.parametrize("name", ["../up", "a/b", "", "-x", "two words", "x" * 65, "ä"])
def test_name_that_is_no_part_of_a_path_is_refused(name):
    with pytest.raises(RecipeError, match=r"^run\.name: .* becomes part of a folder's name"):
        RunSettings(name=name)


def test_named_run_is_found_again_by_its_name_alone(workplace):
    quick = ("--run.baselines=false", "--run.report=false")
    assert run("name=first", *quick, "epochs=1") == 0
    first = only_run().path
    assert first.parent == Path("runs") / run_place("images", "tiny", "first")
    with pytest.raises(RecipeError, match="no run under"):
        build("--ckpt_path=last")
    assert run("name=first", *quick, "epochs=2", "--ckpt_path=last") == 0
    assert only_run().path == first


def test_runs_of_the_recipe_on_other_data_are_named_where_there_is_none_on_these(workplace):
    assert run("--run.baselines=false", "--run.report=false", "epochs=1") == 0
    (workplace / "images").rename(workplace / "moved")
    with pytest.raises(
        RecipeError, match=rf"Runs of it on other data are in runs/{run_place('images', 'tiny')}\. Give the path of a \.ckpt"
    ):
        build("--ckpt_path=last", "--data.root=moved")
    assert [path.name for path in (workplace / "runs").glob(RUNS)] == [only_run().path.name]

import pytest

from medsam_tune.cli import main
from medsam_tune.cli.recipes import copy_recipe
from medsam_tune.errors import RecipeError
from medsam_tune.runs import recipe_files


@pytest.fixture(autouse=True)
def bundle(tmp_path, monkeypatch):
    folder = tmp_path / "bundle"
    (folder / "paper").mkdir(parents=True)
    (folder / "autosam.yaml").write_text("# AutoSAM\nmodel: {}\n")
    (folder / "paper" / "glas.yaml").write_text("# Glands\n")
    monkeypatch.setattr(recipe_files, "recipes_folder", lambda: folder)
    return folder


@pytest.mark.parametrize("words", [["recipes"], ["recipes", "list"]], ids=" ".join)
def test_list_shows_name_and_first_comment(words, capsys):
    assert main(words) == 0
    assert capsys.readouterr().out == "autosam     AutoSAM\npaper/glas  Glands\n"


def test_show_prints_the_file(capsys):
    assert main(["recipes", "show", "autosam"]) == 0
    assert capsys.readouterr().out == "# AutoSAM\nmodel: {}\n"


def test_copy_goes_into_the_current_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["recipes", "copy", "paper/glas"]) == 0
    assert (tmp_path / "glas.yaml").read_text() == "# Glands\n"


def test_copy_overwrites_only_by_force(tmp_path):
    mine = tmp_path / "mine.yaml"
    mine.write_text("kept: 1\n")
    with pytest.raises(RecipeError, match=r"mine\.yaml: exists already.*--force"):
        copy_recipe("autosam", mine)
    assert mine.read_text() == "kept: 1\n"
    copy_recipe("autosam", mine, force=True)
    assert mine.read_text().startswith("# AutoSAM")


def test_copy_into_a_folder_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"nowhere: no such folder"):
        copy_recipe("autosam", tmp_path / "nowhere" / "a.yaml")


def test_mistyped_name_gets_the_near_one(capsys):
    assert main(["recipes", "show", "autosma"]) == 2
    assert "autosma: no such bundled recipe. Did you mean autosam?" in capsys.readouterr().err

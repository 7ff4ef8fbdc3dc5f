import sys
from pathlib import Path
from types import ModuleType

import pytest

from medsam_tune.cli import main
from medsam_tune.runs import recipe_files


@pytest.fixture
def calls(tmp_path, monkeypatch):
    """Stand in for the training room: note what it is asked to do, and answer 7."""
    made = []
    training = ModuleType("medsam_tune.runs.run")
    training.run_recipe = lambda recipe, overrides: made.append(("run", recipe, overrides)) or 7
    training.build_cache = lambda recipe, overrides: made.append(("cache", recipe, overrides)) or 7
    monkeypatch.setitem(sys.modules, "medsam_tune.runs.run", training)
    (tmp_path / "bundle").mkdir()
    (tmp_path / "bundle" / "autosam.yaml").touch()
    monkeypatch.setattr(recipe_files, "recipes_folder", lambda: tmp_path / "bundle")
    monkeypatch.chdir(tmp_path)
    return made


def test_run_hands_the_file_and_normal_overrides_on(calls, tmp_path):
    (tmp_path / "mine.yaml").touch()
    assert main(["run", "mine.yaml", "data.root=x", "--ckpt_path", "last"]) == 7
    assert calls == [("run", Path("mine.yaml"), ["--data.root=x", "--ckpt_path=last"])]


def test_path_with_an_equals_sign_is_a_path(calls, tmp_path):
    (tmp_path / "rank=4").mkdir()
    (tmp_path / "rank=4" / "a=b.yaml").touch()
    assert main(["run", "rank=4/a=b.yaml", "data.root=x=y"]) == 7
    assert calls == [("run", Path("rank=4/a=b.yaml"), ["--data.root=x=y"])]


def test_bundled_recipe_is_run_with_a_word_about_it(calls, tmp_path, capsys):
    main(["run", "recipes/autosam.yaml"])
    assert calls == [("run", tmp_path / "bundle" / "autosam.yaml", [])]
    assert "recipes/autosam.yaml: not a file here; running the bundled recipe" in capsys.readouterr().err


def test_users_own_recipe_is_run_without_a_word(calls, tmp_path, capsys):
    (tmp_path / "autosam.yaml").touch()
    main(["run", "autosam.yaml"])
    assert capsys.readouterr().err == ""


def test_cache_build_takes_the_same_words(calls, tmp_path):
    assert main(["cache", "build", "autosam", "--data.root=x", "data.views=2"]) == 7
    assert calls == [("cache", tmp_path / "bundle" / "autosam.yaml", ["--data.root=x", "--data.views=2"])]


def test_override_before_the_recipe_is_refused(calls, capsys):
    assert main(["run", "--data.root=x", "autosam"]) == 2
    assert "--data.root=x: expected the recipe first" in capsys.readouterr().err
    assert calls == []


def test_missing_recipe_starts_nothing(calls, capsys):
    assert main(["run", "autosan.yaml"]) == 2
    assert "autosan.yaml: no such recipe. Did you mean autosam?" in capsys.readouterr().err
    assert calls == []


def test_help_after_the_recipe_explains_run(calls, capsys):
    assert main(["run", "autosam", "--help"]) == 0
    assert "--ckpt_path=last" in capsys.readouterr().out
    assert calls == []

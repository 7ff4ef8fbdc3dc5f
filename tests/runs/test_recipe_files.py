import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.runs import recipe_files
from medsam_tune.runs.recipe_files import (
    bundled_recipe,
    bundled_recipes,
    find_recipe,
    first_comment,
    name_bundled_recipes,
    recipes_folder,
)


@pytest.fixture
def bundle(tmp_path, monkeypatch):
    """A bundle with two recipes of the same file name, seen from an empty working folder."""
    folder, here = tmp_path / "bundle", tmp_path / "here"
    for name in ("autosam.yaml", "paper/autosam_glas.yaml", "paper/twice.yml", "sweeps/twice.yaml"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(f"# {name}\n")
    here.mkdir()
    monkeypatch.chdir(here)
    monkeypatch.setattr(recipe_files, "recipes_folder", lambda: folder)
    return folder


def test_bundled_recipes_are_known_by_their_path_without_ending(bundle):
    assert list(bundled_recipes()) == ["autosam", "paper/autosam_glas", "paper/twice", "sweeps/twice"]


@pytest.mark.parametrize("name", ["autosam", "autosam.yaml", "recipes/autosam.yaml", "./recipes/autosam.yaml"])
def test_recipe_that_is_no_file_here_falls_back_to_the_bundle(bundle, name):
    assert find_recipe(name) == bundle / "autosam.yaml"


def test_file_name_that_only_one_bundled_recipe_has_is_enough(bundle):
    assert bundled_recipe("autosam_glas") == bundle / "paper" / "autosam_glas.yaml"


def test_file_name_of_two_bundled_recipes_needs_its_folder(bundle):
    with pytest.raises(RecipeError, match="twice: no such bundled recipe"):
        bundled_recipe("twice")
    assert bundled_recipe("paper/twice") == bundle / "paper" / "twice.yml"


def test_file_of_the_user_comes_before_the_bundle(bundle, tmp_path):
    own = tmp_path / "here" / "autosam.yaml"
    own.write_text("mine: 1\n")
    assert find_recipe("autosam.yaml").read_text() == "mine: 1\n"


@pytest.mark.parametrize("name", ["/somewhere/autosam.yaml", "../autosam.yaml", "old/autosam.yaml"])
def test_path_that_leads_elsewhere_is_never_replaced_by_a_bundled_recipe(bundle, name):
    with pytest.raises(RecipeError, match=rf"{name}: no such recipe\. Did you mean autosam"):
        find_recipe(name)


def test_near_file_beside_a_mistyped_one_is_named(bundle, tmp_path):
    (tmp_path / "here" / "lung_lobes.yaml").touch()
    with pytest.raises(RecipeError, match=r"lung_lobe\.yaml: no such recipe\. Did you mean lung_lobes\.yaml\?"):
        find_recipe("lung_lobe.yaml")


def test_folder_and_other_files_are_refused(bundle, tmp_path):
    (tmp_path / "here" / "train.py").touch()
    with pytest.raises(RecipeError, match=r"train\.py: a recipe ends in \.yaml or \.yml"):
        find_recipe("train.py")
    with pytest.raises(RecipeError, match=r"is a folder, a recipe is a .yaml file"):
        find_recipe(str(tmp_path))


def test_first_comment_skips_empty_ones(tmp_path):
    recipe = tmp_path / "a.yaml"
    recipe.write_text("#\n# AutoSAM on glands\n# more\nmodel: {}\n")
    assert first_comment(recipe) == "AutoSAM on glands"
    recipe.write_text("model: {}\n")
    assert first_comment(recipe) == ""


def test_every_bundled_recipe_opens_with_a_comment():
    assert recipes_folder().is_dir()
    assert [name for name, path in bundled_recipes().items() if not first_comment(path)] == []


def test_config_that_names_a_bundled_recipe_becomes_its_file_and_the_users_own_comes_first(bundle, tmp_path):
    path = str(bundle / "autosam.yaml")
    assert name_bundled_recipes(["fit", "--config", "autosam", "--data.root=autosam"]) == [
        "fit", "--config", path, "--data.root=autosam",
    ]  # fmt: skip
    assert name_bundled_recipes(["fit", "--config=autosam", "-c", "none", "--config"]) == [
        "fit", f"--config={path}", "-c", "none", "--config",
    ]  # fmt: skip
    (tmp_path / "here" / "autosam").touch()
    assert name_bundled_recipes(["fit", "--config=autosam"]) == ["fit", "--config=autosam"]

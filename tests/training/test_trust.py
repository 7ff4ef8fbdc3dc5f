"""Which texts of a recipe could become code, and which are names of files and folders."""

from pathlib import Path

import pytest
import yaml

from medsam_tune.errors import RecipeError
from medsam_tune.runs.recipe_files import bundled_recipes
from medsam_tune.training.trust import refuse_foreign_code, refuse_foreign_words

RECIPE = Path("recipe.yaml")
IMAGES = "medsam_tune.data.ImageFolder"
PATHS = {
    "the data": {"data": {"root": "images.v2"}},
    "a table": {"data": {"patient": "images.csv"}},
    "a nested setting": {"data": {"split": {"file": "images.json"}}},
    "an argument of ours": {"data": {"source": {"class_path": IMAGES, "init_args": {"masks": "images.masks"}}}},
    "weights": {
        "model": {"backbone": {"class_path": "medsam_tune.backbone.SamBackbone", "init_args": {"checkpoint": "images.pth"}}}
    },
    "an argument of Lightning's": {
        "trainer": {
            "logger": {
                "class_path": "lightning.pytorch.loggers.CSVLogger",
                "init_args": {"save_dir": "images.logs", "name": "images.a"},
            }
        }
    },
    "the folder of runs": {"run": {"folder": "images.runs"}},
}
CODE = {
    "where a class is wanted": {"model": {"loss": "images.Loss"}},
    "where a function is wanted": {"model": {"optimizer": "images.optimise"}},
    "at a key that nobody knows": {"data": {"source": {"class_path": IMAGES, "init_args": {"new": "images.New"}}}},
    "in a list": {"trainer": {"plugins": ["images.Plugin"]}},
    "at a class's own key": {"model": {"loss": {"init_args": {"inner": "images.Inner"}}}},
    "where plain values are wanted": {"data": {"root": {"class_path": "images.Root"}}},
    "with a name in other letters": {"model": {"loss": "éclair.Loss"}},
}


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Stand where ``images`` is a folder, which Python can import, and ``éclair`` a module."""
    (tmp_path / "images").mkdir()
    (tmp_path / "éclair.py").write_text("raise RuntimeError('imported')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize("recipe", PATHS.values(), ids=PATHS)
def test_a_path_is_no_code_though_its_first_word_can_be_imported(recipe):
    refuse_foreign_code(recipe, RECIPE)


@pytest.mark.parametrize("recipe", CODE.values(), ids=CODE)
def test_a_class_or_function_is_code_wherever_one_could_be_read(recipe):
    with pytest.raises(RecipeError, match=r"recipe\.yaml: .* code from outside medsam_tune that would run"):
        refuse_foreign_code(recipe, RECIPE)


def test_no_bundled_recipe_wants_trust():
    for path in bundled_recipes().values():
        refuse_foreign_code(yaml.safe_load(path.read_text()), path)


def test_words_are_looked_at_as_the_recipe_is():
    refuse_foreign_words(["--data.root=images.v2", "--print_config"], RECIPE)
    Path("more.yaml").write_text("{}")
    for word in (
        "--model.loss=images.Loss",
        "--trainer.callbacks+=images.Callback",
        "--config=more.yaml",
        "--trainer=more.yaml",
    ):
        with pytest.raises(RecipeError, match=r"recipe\.yaml: .* names "):
            refuse_foreign_words([word], RECIPE)

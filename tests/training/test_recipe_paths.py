import pytest
from jsonargparse import Namespace

from medsam_tune.cli import main
from medsam_tune.training.recipe_paths import expand_word, resolve_paths
from tests.training.tiny_runs import build


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/jane")


@pytest.mark.parametrize(
    ("word", "expanded"),
    [
        ("~", "/home/jane"),
        ("~/a b", "/home/jane/a b"),
        ("--data.root=~/img", "--data.root=/home/jane/img"),
        ("data=~/img", "data=/home/jane/img"),
        ("--data.source.case_pattern=^~/x", "--data.source.case_pattern=^~/x"),
        ("a~/b", "a~/b"),
        ("~x", "~x"),
    ],
)
def test_home_of_a_word_is_found_at_the_start_of_a_path_only(word, expanded):
    assert expand_word(word) == expanded


def test_home_is_found_however_deep_a_recipe_holds_the_path():
    part = Namespace(class_path="X", init_args=Namespace(checkpoint="~/w.pth", names=["~/a", "b~"], seed=0))
    recipe = Namespace(model=part, trainer={"root": "~/t"}, other=None)
    resolve_paths(recipe)
    assert recipe.model.init_args == Namespace(checkpoint="/home/jane/w.pth", names=["/home/jane/a", "b~"], seed=0)
    assert recipe.trainer == {"root": "/home/jane/t"}


def test_base_weights_get_an_absolute_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    recipe = Namespace(backbone=Namespace(checkpoint="w/base.pth", weights="sam_vit_b"), other=Namespace(checkpoint=None))
    resolve_paths(recipe)
    assert recipe.backbone == Namespace(checkpoint=str(tmp_path / "w" / "base.pth"), weights="sam_vit_b")
    assert recipe.other.checkpoint is None


def test_every_path_key_of_a_recipe_knows_the_home(workplace, monkeypatch):
    monkeypatch.setenv("HOME", str(workplace))
    keys = {"run.folder": "~/r", "data.cache_folder": "~/c", "data.root": "~/images"}
    cli = build(*(f"--{key}={value}" for key, value in keys.items()))
    found = {key: str(cli.config[key]) for key in keys}
    assert found == {key: value.replace("~", str(workplace)) for key, value in keys.items()}
    assert not (workplace / "~").exists()


def test_commands_of_our_own_know_the_home_too(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["export", "~/no-run", "~/out", "--to=sam", "--checkpoint=~/base.pth"]) == 2
    assert f"{tmp_path}/no-run" in capsys.readouterr().err

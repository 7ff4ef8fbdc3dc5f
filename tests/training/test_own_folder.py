"""What ``data=DIR`` says to a recipe that was written for a sample."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from medsam_tune.training.own_folder import own_folder_words

RECIPES = Path(__file__).parents[2] / "recipes"


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """Three patients of two images, masks of the values 1 and 2."""
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    mask = np.zeros((20, 20), np.uint8)
    mask[2:6, 2:6], mask[9:14, 9:14] = 1, 2
    for patient in range(3):
        for number in range(2):
            for kind, values in (("img", mask * 90), ("seg", mask)):
                path = tmp_path / "data" / f"p{patient}" / kind / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(values).save(path)
    return tmp_path / "data"


def keys(words):
    return dict(word.removeprefix("--").split("=", 1) for word in words)


def test_folder_takes_the_place_of_the_sample(folder):
    words, told = own_folder_words(RECIPES / "samed.yaml", [f"--data.root={folder}"])
    found = keys(words)
    assert found["data.source"] == "medsam_tune.data.ImageFolder"
    assert found["data.source.mask_pattern"] == "^(.+)/seg/(.+)$"
    assert found["data.source.labels"] == '{"label_1": [1], "label_2": [2]}'
    assert found["model.segmenter.classes"] == '["label_1", "label_2"]'
    assert found["data.patient"] == r"^(.+)/\d+$"
    assert "6 images with masks" in told
    assert "data.target" not in found


def test_what_the_user_says_counts(folder):
    recipe = RECIPES / "autosam.yaml"
    words, _ = own_folder_words(recipe, [f"--data.root={folder}", "--data.patient=^(.+)$", "--data.source.labels={a: [1, 2]}"])
    assert not {"data.patient", "data.source.labels"} & keys(words).keys()
    for said in ("--data.source=ImageFolder", "--data.source.images=a"):
        assert own_folder_words(recipe, [f"--data.root={folder}", said]) == ([], "")


def test_answer_is_remembered_until_a_file_changes(folder):
    recipe = RECIPES / "autosam.yaml"
    before = own_folder_words(recipe, [f"--data.root={folder}"])
    assert own_folder_words(recipe, [f"--data.root={folder}"]) == before
    Image.fromarray(np.full((20, 20), 3, np.uint8)).save(folder / "p0/seg/0.png")
    assert '"label_3": [3]' in keys(own_folder_words(recipe, [f"--data.root={folder}"])[0])["data.source.labels"]


def test_recipe_of_a_folder_and_a_folder_that_is_not_there_are_left_alone(folder, tmp_path):
    (tmp_path / "mine.yaml").write_text("data: {root: mine, source: {class_path: medsam_tune.data.ImageFolder}}")
    assert own_folder_words(tmp_path / "mine.yaml", [f"--data.root={folder}"]) == ([], "")
    assert own_folder_words(RECIPES / "autosam.yaml", ["--data.root=nowhere"]) == ([], "")
    assert own_folder_words(RECIPES / "autosam.yaml", ["--epochs=1"]) == ([], "")


def test_another_sample_than_the_recipes_own_is_looked_at_too(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    found = keys(own_folder_words(RECIPES / "medsam_box.yaml", ["--data.root=sample:carotid"])[0])
    assert found["data.source"] == "medsam_tune.data.ImageFolder"
    assert own_folder_words(RECIPES / "medsam_box.yaml", ["--data.root=sample:hippocampus"]) == ([], "")


def test_large_images_of_thin_objects_get_tiles_as_init_gives_them(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDSAM_TUNE_CACHE", str(tmp_path / "cache"))
    mask = np.zeros((700, 700), np.uint8)
    mask[:, ::70], mask[:, 1::70], mask[:, 2::70], mask[:, 3::70] = 1, 1, 1, 1
    for number in range(4):
        for kind, values in (("images", mask * 90), ("masks", mask)):
            path = tmp_path / "data" / kind / f"{number}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(values).save(path)
    words, told = own_folder_words(RECIPES / "autosam.yaml", [f"--data.root={tmp_path / 'data'}"])
    assert keys(words)["data.tiles"] == '{"size": 256}'
    assert "Cut into tiles: the middle object is" in told
    chosen = own_folder_words(RECIPES / "autosam.yaml", [f"--data.root={tmp_path / 'data'}", "--data.tiles=null"])[0]
    assert "data.tiles" not in keys(chosen)


def test_folder_without_a_layout_says_why_and_leaves_the_recipes_source(tmp_path):
    (tmp_path / "empty").mkdir()
    words, told = own_folder_words(RECIPES / "autosam.yaml", [f"--data.root={tmp_path / 'empty'}"])
    assert words == []
    assert "it is empty" in told
    assert told.endswith("the recipe's own source is tried.")


def test_one_object_is_a_class_where_a_recipe_has_classes(folder):
    for path in folder.rglob("seg/*.png"):
        Image.fromarray((np.asarray(Image.open(path)) > 0).astype(np.uint8) * 255).save(path)
    found = keys(own_folder_words(RECIPES / "samed.yaml", [f"--data.root={folder}"])[0])
    assert (found["data.source.labels"], found["model.segmenter.classes"]) == ('{"object": [255]}', '["object"]')


def test_masks_that_show_nothing_leave_a_label_for_the_search_to_refuse(folder):
    """An empty list of values would be refused first, as if somebody had written it."""
    for path in folder.rglob("seg/*.png"):
        Image.fromarray(np.zeros((20, 20), np.uint8)).save(path)
    found = keys(own_folder_words(RECIPES / "samed.yaml", [f"--data.root={folder}"])[0])
    assert found["data.source.labels"] == '{"object": [1]}'


@pytest.mark.parametrize("key", ["data.source.labels", "data.colours"])
def test_classes_that_the_user_names_are_those_of_the_network(folder, key):
    said = '{"wall": [2], "lumen": [1]}' if key.endswith("labels") else "{wall: [255, 0, 0], lumen: [0, 255, 0]}"
    words, _ = own_folder_words(RECIPES / "samed.yaml", [f"--data.root={folder}", f"--{key}={said}"])
    assert keys(words)["model.segmenter.classes"] == '["wall", "lumen"]'

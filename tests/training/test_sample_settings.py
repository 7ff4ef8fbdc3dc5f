"""What a recipe says of its bundled sample holds for the sample alone."""

from pathlib import Path

import pytest
import yaml

from medsam_tune.cli import main
from medsam_tune.training.sample_settings import sample_settings_to_reset

RECIPES = Path(__file__).parents[2] / "recipes"


def source_of(capsys, *words):
    assert main([*words, "--print_config"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    return config["data"]["source"]["init_args"]


@pytest.mark.parametrize("recipe", ["medsam_box", "interactive", "samed"])
def test_labels_axis_and_slices_of_the_sample_do_not_survive_another_folder_or_class(capsys, recipe):
    path = str(RECIPES / f"{recipe}.yaml")
    every = {"count": None, "step": None, "range": [0.0, 1.0]}
    sample = source_of(capsys, "run", path)
    assert (sample["axis"], sample["labels"]) == ("coronal", {"anterior": [1], "posterior": [2]})
    own = source_of(capsys, "run", path, "--data.root=DIR")
    assert (own["axis"], own["labels"], own["slices"], own["train_slices"]) == ("axial", None, every, None)
    images = source_of(capsys, "run", path, "--data.root=DIR", "--data.source=ImageFolder")
    assert images["labels"] is None


def test_settings_of_the_command_line_count_wherever_they_stand(capsys):
    path = str(RECIPES / "medsam_box.yaml")
    words = ["--data.source.axis=sagittal", "--data.root=DIR", "--data.source.labels={liver: [3]}"]
    own = source_of(capsys, "run", path, *words)
    assert (own["axis"], own["labels"]) == ("sagittal", {"liver": [3]})
    assert source_of(capsys, "run", path, "--data.source.axis=sagittal")["labels"] == {"anterior": [1], "posterior": [2]}


def test_prediction_keeps_how_the_network_was_trained(capsys):
    words = ["predict", "--config", str(RECIPES / "medsam_box.yaml"), "--data.root=DIR"]
    assert source_of(capsys, *words)["axis"] == "coronal"
    assert source_of(capsys, "fit", *words[1:])["axis"] == "axial"


@pytest.mark.parametrize(
    "text",
    ["data: {root: mine, source: {class_path: medsam_tune.data.NiftiVolumes, init_args: {axis: axial}}}", "data: 3", "[]", ""],
)
def test_recipe_without_a_sample_is_left_alone(tmp_path, text):
    (tmp_path / "mine.yaml").write_text(text)
    assert sample_settings_to_reset(tmp_path / "mine.yaml", ["--data.root=DIR", "--data.source", "ImageFolder"]) == {}

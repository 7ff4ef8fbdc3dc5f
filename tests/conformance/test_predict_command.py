"""``medsam-tune predict`` answers new images with the network of every bundled recipe, whatever it wants to be given."""

import csv
import json

import numpy as np
import pytest
import yaml
from PIL import Image

import medsam_tune
from medsam_tune.cli import main
from medsam_tune.export.folder import save_export
from medsam_tune.inference.automatic import AutomaticMaskGenerator
from medsam_tune.inference.new_images import image_tensor
from medsam_tune.inference.prior_network import build_prior_network
from medsam_tune.precompute import PriorSettings
from tests.conformance.recipe_cases import FOLDER, RECIPES, small_config, small_module

PRIORS = {"weights": "random_tiny", "points_per_side": 2, "pred_iou_thresh": 0, "stability_score_thresh": 0}
BOX = (12, 8, 39, 30)


@pytest.fixture
def place(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    # Value 1 is a label of every recipe that names any.
    mask = np.zeros((48, 64), np.uint8)
    mask[8:31, 12:40] = 1
    for folder, pixels in (("new", np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)), ("masks", mask)):
        (tmp_path / folder).mkdir()
        Image.fromarray(pixels).save(tmp_path / folder / "a.png")
    return tmp_path


def exported(recipe, folder):
    """An export as a run of the recipe leaves it, of weights that nobody trained."""
    data = yaml.safe_load((FOLDER / recipe).read_text(encoding="utf-8"))["data"]
    labels = (data["source"].get("init_args") or {}).get("labels") if isinstance(data["source"], dict) else None
    described = {"target": data.get("target", "binary"), "labels": labels, "priors": PRIORS if "priors" in data else None}
    segmenter = small_module(recipe).segmenter.eval()
    model = small_config(recipe)
    save_export(folder, segmenter=segmenter, model_config=model, metrics={}, data_description=described)
    return medsam_tune.load_export(folder)


def answers(predictor, image):
    """What the model says in Python, by the name of each label."""
    segmenter, found = predictor.segmenter, None
    if segmenter.classes():
        return predictor.segment_classes(image)
    if segmenter.reads_priors():
        settings = PriorSettings(**PRIORS)
        found = AutomaticMaskGenerator(build_prior_network(settings), settings).generate(image_tensor(image))
    predictor.set_image(image, priors=found)
    masks = predictor.predict(box=BOX)[0] if segmenter.asks_user() else predictor.predict()[0]
    return {"": masks[0]}


@pytest.mark.filterwarnings("ignore:`loftq_config` specified but will be ignored:UserWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_every_recipes_model_is_used_from_the_command_line(recipe, place, capsys):
    predictor = exported(recipe, place / "export")
    image = np.asarray(Image.open(place / "new" / "a.png"))
    words = ["predict", "export", "new", "-o", "out"]
    if predictor.segmenter.asks_user():
        assert main(words) == 2
        assert "--boxes: is not given" in capsys.readouterr().err
        words += ["--every-object-of", "masks"]
    assert main([*words, "--overlays"]) == 0
    written = np.asarray(Image.open(place / "out" / "a.png"))
    legend = json.loads((place / "out" / "labels.json").read_text())
    values = {entry["name"]: int(value) for value, entry in legend.items()}
    expected = answers(predictor, image)
    if predictor.segmenter.classes():
        assert set(values) == set(expected)
        assert all(np.array_equal(written == values[name], mask) for name, mask in expected.items())
    else:
        (value,) = values.values()
        assert np.array_equal(written == value, expected[""])
    rows = csv.DictReader((place / "out" / "cases.csv").read_text().splitlines())
    counted = {name: (written == value).sum() for name, value in values.items()}
    assert {row["label"]: int(row["pixels"]) for row in rows} == counted
    assert (place / "out" / "overlays" / "a.png").is_file()

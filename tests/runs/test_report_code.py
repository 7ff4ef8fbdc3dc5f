"""What a report says under "Use the model" runs as it stands, for every recipe of the project: in Python and in a shell."""

import csv
import shlex
from dataclasses import asdict

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.cli import main
from medsam_tune.export import save_export
from medsam_tune.inference.usage import predict_command, prediction_code
from medsam_tune.precompute.prior_settings import PriorSettings
from medsam_tune.runs.report_stage import reload_code
from medsam_tune.types import AutomaticMasks
from tests.conformance.recipe_cases import RECIPES, small_config, small_module

SIZE = (40, 56)
IMAGE = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
PROMPTS = {
    "--boxes": (("image", "x1", "y1", "x2", "y2"), ("image.png", 5, 6, 30, 31)),
    "--points": (("image", "x", "y"), ("image.png", 12, 13)),
}
PRIORS = PriorSettings("random_tiny", points_per_side=2, pred_iou_thresh=0, stability_score_thresh=0)
ONE_MASK = torch.ones(1, *SIZE, dtype=torch.bool)
GIVEN = {
    "image": IMAGE,
    "found": AutomaticMasks(ONE_MASK, torch.ones(1), torch.ones(1)),
    "logits": np.zeros((1, 16, 16)),
    **{"x1": 5, "y1": 6, "x2": 30, "y2": 31, "x": 12, "y": 13, "x_wrong": 3, "y_wrong": 4},
}


def masks_of(code):
    """Execute the lines with the names filled in that they leave to a user, and return the masks (K, H, W)."""
    names = dict(GIVEN)
    exec(code, names)
    masks = names["mask"][None] if "mask" in names else names["masks"]
    return np.stack(list(masks.values())) if isinstance(masks, dict) else masks


def typed(command, folder):
    """Type a command with the names filled in that it leaves to a user, and return where the masks came to."""
    words = shlex.split(command, comments=True)
    Image.fromarray(IMAGE).save(folder / "image.png")
    if "FILE" in words:
        with (folder / "prompts.csv").open("w", newline="") as file:
            csv.writer(file).writerows(PROMPTS[words[words.index("FILE") - 1]])
    places = {"INPUT": folder / "image.png", "OUT": folder / "masks", "FILE": folder / "prompts.csv"}
    assert words.pop(0) == "medsam-tune"
    assert main([str(places.get(word, word)) for word in words]) == 0
    return list((folder / "masks").glob("*.png"))


@pytest.mark.filterwarnings("ignore:`loftq_config` specified but will be ignored:UserWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_the_model_of_every_recipe_is_used_as_its_report_says(recipe, tmp_path):
    config, segmenter, export = small_config(recipe), small_module(recipe).segmenter, tmp_path / "export"
    data = {"priors": asdict(PRIORS)} if segmenter.reads_priors() else {}
    save_export(export, segmenter=segmenter, model_config=config, metrics={}, data_description=data)
    masks = masks_of(reload_code(export, config) + prediction_code(segmenter))
    assert (masks.shape[-2:], masks.dtype) == (SIZE, bool)
    (mask,) = typed(predict_command(segmenter, str(export)), tmp_path)
    assert np.asarray(Image.open(mask)).shape == SIZE

"""Every recipe's network answers through the predictor, whatever type its weights were moved to."""

import copy

import numpy as np
import pytest
import torch

from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.usage import asked_kinds
from medsam_tune.types import AutomaticMasks
from tests.conformance.recipe_cases import RECIPES, small_module

IMAGE = np.random.default_rng(0).integers(0, 255, (48, 64), dtype=np.uint8)
PROMPTS = {
    "boxes": {"box": (5, 6, 40, 30)},
    "points": {"point_coords": [(9, 9)], "point_labels": [1]},
    "mask_inputs": {"mask_input": np.zeros((1, 16, 16), np.float32)},
}


def answer(segmenter):
    """Logits at the image's size, asked as the recipe asks."""
    predictor = Predictor(segmenter)
    found = AutomaticMasks(torch.ones(1, 48, 64, dtype=torch.bool), torch.ones(1), torch.ones(1))
    predictor.set_image(IMAGE, priors=found if segmenter.reads_priors() else None)
    asked = {name: value for kind in asked_kinds(segmenter) for name, value in PROMPTS[kind].items()}
    return predictor.predict(**asked, return_logits=True)[0]


@pytest.mark.filterwarnings("ignore:`loftq_config` specified but will be ignored:UserWarning")
@pytest.mark.parametrize("recipe", RECIPES)
def test_weights_of_half_and_double_precision_answer_alike(recipe):
    segmenter = small_module(recipe).segmenter.eval()
    expected = answer(segmenter)
    # Of 8, 11 and 53 bits; many layers of random weights lose about three of them.
    tolerances = {torch.bfloat16: 0.05, torch.float16: 0.01, torch.float64: 5e-5}
    if "masam" in recipe:
        # A decoder of four stages over the tiny network's 32 channels ends in a norm over two, which blows rounding up.
        del tolerances[torch.bfloat16], tolerances[torch.float16]
    for dtype, tolerance in tolerances.items():
        found = answer(copy.deepcopy(segmenter).to(dtype))
        assert found.dtype == np.float32
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()

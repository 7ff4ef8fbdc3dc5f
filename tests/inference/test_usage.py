"""The code that a report shows runs as it stands."""

import numpy as np
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.usage import asked_kinds, prediction_code
from medsam_tune.prompts import BoxPrompt, MaskPrompt, PointPrompt
from medsam_tune.prompts.combined import CombinedPrompt
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.interactive import InteractiveSegmenter
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.types import AutomaticMasks

SIZE = (40, 56)


def executed(segmenter):
    """What the lines leave behind, with the names filled in that they leave to a user."""
    found = AutomaticMasks(torch.ones(1, *SIZE, dtype=torch.bool), torch.ones(1), torch.ones(1))
    given = {"x1": 5, "y1": 6, "x2": 30, "y2": 31, "x": 12, "y": 13, "x_wrong": 3, "y_wrong": 4}
    image = np.random.default_rng(0).integers(0, 256, SIZE, dtype=np.uint8)
    names = {"predictor": Predictor(segmenter), "image": image, "found": found, "logits": np.zeros((1, 16, 16)), **given}
    exec(prediction_code(segmenter), names)
    return names


def segmenter_of(prompts=None, kind=SamSegmenter):
    return kind(SamParts(SamBackbone("random_tiny"), prompts))


@pytest.mark.parametrize(
    ("prompts", "kinds"),
    [
        (None, ()),
        (BoxPrompt("whole_image"), ()),
        (BoxPrompt(), ("boxes",)),
        (PointPrompt(), ("points",)),
        (MaskPrompt(), ("mask_inputs",)),
        (CombinedPrompt([PointPrompt(), BoxPrompt()]), ("points", "boxes")),
    ],
    ids=["none", "whole image", "box", "point", "mask", "both"],
)
def test_code_gives_the_prompts_that_training_gave_and_no_others(prompts, kinds):
    segmenter = segmenter_of(prompts)
    assert asked_kinds(segmenter) == kinds
    code = prediction_code(segmenter)
    for kind, argument in (("boxes", "box="), ("points", "point_coords="), ("mask_inputs", "mask_input=")):
        assert (argument in code) is (kind in kinds)
    executed(segmenter)


@pytest.mark.parametrize("prompts", [None, BoxPrompt("whole_image")])
def test_model_that_needs_no_prompt_is_asked_in_one_line(prompts):
    assert prediction_code(segmenter_of(prompts)).splitlines()[-1].startswith("mask = predictor.segment(image)")


@pytest.mark.parametrize("prompts", [BoxPrompt(), PointPrompt()])
def test_interactive_model_is_shown_its_last_mask_with_a_click_on_what_is_wrong(prompts):
    segmenter = segmenter_of(prompts, InteractiveSegmenter)
    code = prediction_code(segmenter)
    assert code.count("predictor.predict(") == 2
    assert "(x_wrong, y_wrong)" in code
    first = executed(segmenter_of(prompts))["low_res_masks"]
    assert not np.array_equal(executed(segmenter)["low_res_masks"], first)

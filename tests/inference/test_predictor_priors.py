"""A predictor whose network fuses the automatic masks of the image it is given."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from medsam_tune.errors import RecipeError
from medsam_tune.fusion import AddRgb, priors_to_input, render_priors
from medsam_tune.inference.new_images import image_tensor, new_batch
from medsam_tune.inference.predictor import Predictor
from medsam_tune.segmenters import SamSegmenter, TaskSegmenter
from medsam_tune.segmenters.base import SamParts
from medsam_tune.types import AutomaticMasks

IMAGE = np.random.default_rng(0).integers(0, 255, (40, 48), dtype=np.uint8)


@pytest.fixture(scope="module")
def predictor():
    torch.manual_seed(0)
    return Predictor(TaskSegmenter(SamParts(fusion=AddRgb()), side=64))


def found(height=40, width=48):
    masks = torch.zeros(2, height, width, dtype=torch.bool)
    masks[0, 4:30, 4:30], masks[1, 10:35, 20:44] = True, True
    return AutomaticMasks(masks, torch.ones(2), torch.tensor([0.9, 0.97]))


def test_given_masks_are_fused_as_in_training(predictor):
    predictor.set_image(IMAGE, priors=found())
    batch = new_batch([image_tensor(IMAGE)], predictor.segmenter)
    priors = priors_to_input(render_priors(found()), batch.frames[0], 64)[None]
    segmenter = predictor.segmenter
    with torch.no_grad():
        plain = TaskSegmenter(SamParts(), side=64).eval()
        plain.network.load_state_dict(segmenter.network.state_dict())
        expected = plain(replace(batch, images=AddRgb()(batch.images, priors)))
    torch.testing.assert_close(torch.from_numpy(predictor.predict()[2]), expected.low_res_masks[0])


def test_missing_masks_are_asked_for(predictor):
    with pytest.raises(RecipeError, match=r"AddRgb fuses 2 prior maps into each image, this batch has none"):
        predictor.segment(IMAGE)


def test_masks_of_another_image_are_refused(predictor):
    with pytest.raises(ValueError, match=r"priors must be masks of the image's size \(40, 48\), got \(48, 40\)"):
        predictor.segment(IMAGE, priors=found(48, 40))


def test_promptable_network_takes_masks_too(tiny_backbone):
    plain = Predictor(SamSegmenter(SamParts(tiny_backbone)))
    fused = Predictor(SamSegmenter(SamParts(tiny_backbone, fusion=AddRgb())))
    nothing = AutomaticMasks(torch.zeros(0, 40, 48, dtype=torch.bool), torch.zeros(0), torch.zeros(0))
    plain.set_image(IMAGE)
    fused.set_image(IMAGE, priors=nothing)
    assert np.array_equal(fused.predict()[2], plain.predict()[2])
    fused.set_image(IMAGE, priors=found())
    assert not np.array_equal(fused.predict()[2], plain.predict()[2])

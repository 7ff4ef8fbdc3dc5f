"""Specks go from masks wherever masks are made, and from nothing else."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_tune import Predictor, SamBackbone
from medsam_tune.data import Tiles
from medsam_tune.errors import RecipeError
from medsam_tune.evaluation.predict import predict_masks
from medsam_tune.inference.small_parts import thresholded, without_specks
from medsam_tune.inference.stitching import answer
from medsam_tune.prompt_encoders import EmbeddingPromptGenerator
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter
from medsam_tune.segmenters.semantic import SemanticSegmenter
from medsam_tune.training.module import TuningModule
from medsam_tune.types import MaskPrediction
from tests.factories import make_batch

PICTURE = """
1111.....1
1..1.11...
1111.11...
1111......
.....1....
"""


def mask_of(picture):
    return np.array([[pixel == "1" for pixel in line] for line in picture.split()])


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        # The largest island has 14 pixels: a share of 0.1 drops the two single ones, 0.2 fills the hole of two, 0.3 drops four.
        (0.1, "1111...... 1..1.11... 1111.11... 1111...... .........."),
        (0.2, "1111...... 1111.11... 1111.11... 1111...... .........."),
        (0.3, "1111...... 1111...... 1111...... 1111...... .........."),
    ],
)
def test_parts_below_a_share_of_the_largest_island_go(share, expected):
    assert np.array_equal(without_specks(mask_of(PICTURE), share), mask_of(expected))


def test_nothing_happens_to_an_empty_and_to_a_full_mask():
    for mask in (np.zeros((3, 4), bool), np.ones((3, 4), bool)):
        assert np.array_equal(without_specks(mask, 0.5), mask)


def test_parts_are_those_of_a_count_by_hand():
    random = np.random.default_rng(0)
    mask = ndimage.gaussian_filter(random.normal(size=(60, 80)), 2) > 0
    labels, count = ndimage.label(mask)
    areas = [int((labels == part).sum()) for part in range(1, count + 1)]
    expected = np.isin(labels, [part for part in range(1, count + 1) if areas[part - 1] >= 0.05 * max(areas)])
    holes, count = ndimage.label(~expected)
    for part in range(1, count + 1):
        if (holes == part).sum() < 0.05 * max(areas):
            expected |= holes == part
    found = without_specks(mask, 0.05)
    assert np.array_equal(found, expected)
    assert not np.array_equal(found, mask)


def test_masks_of_any_shape_are_looked_at_alone():
    mask = torch.from_numpy(mask_of(PICTURE))
    logits = torch.stack([mask, ~mask]).float()[:, None] - 0.5
    found = thresholded(logits, 0.2)
    assert found.shape == (2, 1, 5, 10)
    for row, each in enumerate((mask, ~mask)):
        assert np.array_equal(found[row, 0], without_specks(each.numpy(), 0.2))
        assert torch.equal(thresholded(logits[row, 0], 0.2), found[row, 0])
    assert torch.equal(thresholded(logits), logits > 0)
    assert thresholded(logits[:0], 0.2).shape == (0, 1, 5, 10)


def test_a_prediction_keeps_its_share_when_it_moves():
    prediction = MaskPrediction(torch.zeros(1, 1, 2, 2), smallest_part=0.1)
    assert prediction.to("cpu").smallest_part == 0.1


def segmenter(share):
    torch.manual_seed(0)
    parts = SamParts(SamBackbone("random_tiny"), prompt_encoder=EmbeddingPromptGenerator(8), smallest_part=share)
    made = SamSegmenter(parts).eval()
    torch.nn.init.normal_(made.prompt_encoder.trunk.head.weight)
    return made


def test_test_and_predictor_make_the_same_masks():
    image = np.random.default_rng(0).integers(0, 256, (40, 64, 3), dtype=np.uint8)
    plain, tidy = segmenter(0.0), segmenter(0.3)
    given = make_batch(sizes=((40, 64),), rule=tidy.input_rule)
    images = torch.zeros_like(given.images)
    images[0, :, :40] = torch.from_numpy(image).permute(2, 0, 1)
    given = replace(given, images=images)
    with torch.no_grad():
        (raw,), (expected,) = (predict_masks(answer(s, given), given, s.input_rule.side) for s in (plain, tidy))
    assert np.array_equal(expected[0], without_specks(raw[0].numpy(), 0.3))
    assert not torch.equal(raw, expected)
    predictor = Predictor(tidy)
    predictor.set_image(image)
    assert np.array_equal(predictor.predict()[0][0], expected[0])
    assert np.array_equal(predictor.segment_many([image])[0], expected[0])
    untouched = Predictor(plain)
    untouched.set_image(image)
    assert np.array_equal(predictor.predict(return_logits=True)[0], untouched.predict(return_logits=True)[0])
    # Of tiles it is the joined image whose specks go.
    tiles = Tiles(size=32, overlap=8).in_pixels(tidy.input_rule.side)
    whole, cut = Predictor(plain, tiles=tiles), Predictor(tidy, tiles=tiles)
    for each in (whole, cut):
        each.set_image(image)
    assert np.array_equal(cut.predict()[0][0], without_specks(whole.predict()[0][0].astype(bool), 0.3))


def test_every_pixel_of_one_class_has_no_specks():
    backbone = SamBackbone("random_tiny")
    with pytest.raises(RecipeError, match=r"model.smallest_part: a hole in one class"):
        TuningModule(backbone=backbone, segmenter=lambda parts: SemanticSegmenter(parts, classes=["a"]), smallest_part=0.1)

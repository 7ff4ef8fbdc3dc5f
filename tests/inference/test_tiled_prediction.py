import numpy as np
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.errors import DataError
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.stitching import asked_images
from medsam_tune.inference.tiled_prediction import tiled_batch, with_prompts
from medsam_tune.inference.trained_data import tiles_of
from medsam_tune.prompt_encoders import EmbeddingPromptGenerator
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.sam import SamSegmenter

IMAGE = np.random.default_rng(0).integers(0, 255, (20, 40), dtype=np.uint8)


@pytest.fixture(scope="module")
def backbone():
    torch.manual_seed(0)
    return SamBackbone("random_tiny")


def test_one_tile_answers_as_the_whole_image_does(backbone):
    whole, cut = Predictor(backbone), Predictor(backbone, tiles=(64, 8))
    for predictor in (whole, cut):
        predictor.set_image(IMAGE)
    for prompt in ({"box": (3, 4, 30, 15)}, {"point_coords": [[9, 9], [30, 3]], "point_labels": [1, 0]}):
        expected, found = (each.predict(**prompt, return_logits=True) for each in (whole, cut))
        assert np.allclose(found[0], expected[0], atol=1e-4)
        assert np.allclose(found[1], expected[1], atol=1e-4)


def test_an_image_is_answered_whole_from_its_tiles(backbone):
    segmenter = SamSegmenter(SamParts(backbone, prompt_encoder=EmbeddingPromptGenerator(width=8, dilations=[1])))
    cut = Predictor(segmenter, tiles=(16, 4))
    cut.set_image(IMAGE)
    masks, _, logits = cut.predict(return_logits=True)
    assert masks.shape == logits.shape[-3:] == (1, 20, 40)
    # The corner lies on one tile alone, whose own answer it is.
    alone = Predictor(segmenter)
    alone.set_image(IMAGE[:16, :16])
    corner = alone.predict(return_logits=True)[0]
    assert np.allclose(masks[0, :4, :12], corner[0, :4, :12], atol=1e-4)
    assert cut.segment_many([IMAGE, IMAGE[:, :9]])[1].shape == (20, 9)


def test_a_box_is_cut_at_the_borders_of_the_tiles_it_touches(backbone):
    segmenter = SamSegmenter(SamParts(backbone))
    batch = tiled_batch(torch.zeros(3, 20, 40), segmenter, 16, 4)
    assert [tile.left for tile in batch.tiles] == [0, 12, 24] * 2
    asked = with_prompts(batch, 2, {"boxes": [[2, 1, 13, 3], [30, 8, 39, 19]]})
    (image,) = asked_images(asked)
    rows = [[row for _, row in places] for places in image.objects]
    # The first box reaches into the second column of tiles by two pixels; the second lies on both rows of the last column.
    assert rows == [[0, 1], [2, 5]]
    scale = segmenter.input_rule.side / 16
    assert asked.queries.boxes[0].tolist() == [2 * scale, scale, 14 * scale - 1, 4 * scale - 1]
    assert asked.queries.boxes[1].tolist() == [0, scale, 2 * scale - 1, 4 * scale - 1]


def test_a_tile_without_a_foreground_point_is_not_asked(backbone):
    batch = tiled_batch(torch.zeros(3, 20, 40), SamSegmenter(SamParts(backbone)), 16, 4)
    asked = with_prompts(batch, 1, {"point_coords": [[[1, 1], [39, 1]]], "point_labels": [[1, 0]]})
    assert asked.image_index.tolist() == [0]
    assert asked.queries.point_labels.tolist() == [[1, -1]]


def test_what_tiles_cannot_answer_is_refused(backbone):
    predictor = Predictor(backbone, tiles=(16, 4))
    predictor.set_image(IMAGE)
    with pytest.raises(ValueError, match="by boxes and points"):
        predictor.predict(box=(1, 1, 5, 5), multimask_output=True)
    with pytest.raises(ValueError, match="Give a box or points"):
        predictor.predict(mask_input=np.zeros((1, 16, 16), np.float32))
    with pytest.raises(ValueError, match=r"objects \[0\] touch no pixel of the image \(20, 40\)"):
        predictor.predict(box=(50, 1, 60, 5))


def test_an_export_says_how_its_images_were_cut():
    assert tiles_of({"tiles": {"size": 256, "overlap": 32, "tiles": 9}}) == (256, 32)
    assert tiles_of({}) is None
    for damaged in ([], {"size": 0, "overlap": 0}, {"size": "a", "overlap": 1}):
        with pytest.raises(DataError, match=r"export\.json: tiles of .* are none. Export the run again"):
            tiles_of({"tiles": damaged})

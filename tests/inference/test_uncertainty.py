import math

import numpy as np
import pytest
import torch

from medsam_tune.backbone import SamBackbone
from medsam_tune.inference.predictor import Predictor
from medsam_tune.inference.prompt_files import DrawnObject
from medsam_tune.inference.uncertainty import N_MOVED, mean_entropy_bits, moved_boxes, moved_points, uncertainty_of


def test_entropy_is_that_of_the_mean_over_pixels_that_any_answer_shows():
    # Probabilities 3/4 and 1/4 in the first pixel; the second is object in one answer of two; nobody shows the third.
    logits = torch.tensor([[[math.log(3), 40.0, -1.0]], [[math.log(1 / 3), -40.0, -1.0]]], dtype=torch.float64)
    assert mean_entropy_bits(logits) == pytest.approx(1.0)
    sure = torch.tensor([[[math.log(3), 40.0]], [[math.log(3), 40.0]]], dtype=torch.float64)
    quarter = -(0.75 * math.log2(0.75) + 0.25 * math.log2(0.25))
    assert mean_entropy_bits(sure) == pytest.approx(quarter / 2)
    assert mean_entropy_bits(torch.full((2, 1, 3), -5.0)) is None


def test_boxes_move_by_a_tenth_of_their_sides_and_stay_in_the_image():
    generator = torch.Generator().manual_seed(0)
    boxes = np.concatenate([moved_boxes((10, 20, 29, 59), (100, 200), generator) for _ in range(50)])
    assert boxes.shape == (50 * N_MOVED, 4)
    reach = np.abs(boxes - (10, 20, 29, 59)).max(axis=0)
    assert (reach <= (2, 4, 2, 4)).all()
    assert (reach > (1.9, 3.9, 1.9, 3.9)).all()
    small = moved_boxes((0, 0, 0, 99), (100, 1), generator)
    assert small.min() >= 0
    assert (small[:, 2] <= 0).all()
    assert (small[:, 3] <= 99).all()


def test_points_move_by_a_hundredth_of_the_longer_side_and_keep_their_labels():
    drawn = DrawnObject("a", points=((50, 60, 1), (0, 0, 0)))
    coords, labels = moved_points(drawn, (100, 200), torch.Generator().manual_seed(0))
    assert np.abs(coords - [(50, 60), (0, 0)]).max() <= 2
    assert coords.min() >= 0
    assert (labels == [1, 0]).all()


def test_the_same_object_has_the_same_uncertainty_whenever_it_is_asked():
    predictor = Predictor(SamBackbone("random_tiny"))
    predictor.set_image(np.random.default_rng(0).integers(0, 255, (40, 50), dtype=np.uint8))
    drawn = DrawnObject("a", 0, box=(5, 6, 30, 29))
    first = uncertainty_of(predictor, drawn, (40, 50), name="a 0")
    torch.rand(3)
    assert uncertainty_of(predictor, drawn, (40, 50), name="a 0") == first
    assert 0 < first <= 1
    assert uncertainty_of(predictor, drawn, (40, 50), name="b 0") != first

import json

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_tune import Predictor, SamBackbone
from medsam_tune.data.intensity import AS_STORED
from medsam_tune.errors import DataError, RecipeError
from medsam_tune.inference.file_prediction import Asking, answer_file
from medsam_tune.inference.held_image import held_image
from medsam_tune.inference.propagation import (
    PropagationRules,
    Step,
    VolumePrompt,
    check_propagation,
    described,
    keep_connected,
    next_box,
    propagate,
)
from medsam_tune.inference.slice_prompts import NO_PROMPTS, SliceAnswer
from medsam_tune.inference.trained_data import TrainedData
from medsam_tune.segmenters.base import SamParts
from medsam_tune.segmenters.semantic import SemanticSegmenter


class Perfect:
    """A network that finds in each box exactly the truth, and scores it as it is told."""

    def __init__(self, truth, scores=None):
        self.truth, self.scores, self.asked = truth, scores or {}, []

    def __call__(self, position, prompts):
        self.asked.append((position, prompts))
        mask = self.truth[position].copy()
        if prompts.box is not None:
            x1, y1, x2, y2 = (round(corner) for corner in prompts.box)
            outside = np.ones_like(mask)
            outside[y1 : y2 + 1, x1 : x2 + 1] = False
            mask[outside] = False
        return SliceAnswer(mask, self.scores.get(position, 0.9))

    def follow(self, position, box, **rules):
        prompts = NO_PROMPTS.with_box(box)
        first = Step(position, prompts, self(position, prompts))
        return propagate(self, len(self.truth), first, PropagationRules(**rules))


def ball(size=24, radius=8.5, centre=(12, 12, 12)):
    grid = np.indices((size, size, size))
    return sum((axis - middle) ** 2 for axis, middle in zip(grid, centre, strict=True)) <= radius**2


def test_a_ball_is_found_whole_from_the_box_of_its_middle_and_no_further():
    truth = ball()
    found = Perfect(truth).follow(12, (4, 4, 20, 20), margin=0.1, shrink=0.0)
    assert sorted(found.masks) == list(range(4, 21))
    assert all(np.array_equal(mask, truth[position]) for position, mask in found.masks.items())
    assert (found.below, found.above) == ("the next mask is empty", "the next mask is empty")
    assert found.said().startswith("slices 4 to 20; not below 4: the next mask is empty")


def test_a_slanted_rod_is_followed_because_the_box_moves_on_with_it():
    truth = np.zeros((16, 10, 60), bool)
    for position in range(16):
        truth[position, 3:7, 3 * position : 3 * position + 8] = True
    found = Perfect(truth).follow(0, (0, 3, 7, 6), margin=0.0)
    # The box grows by one pixel, the rod moves by three: the first step cannot know it, all others do.
    widths = [found.masks[position].any(0).sum() for position in sorted(found.masks)]
    assert len(widths) == 16
    assert min(widths) >= 6
    assert found.above == "the volume ends"


def test_the_next_box_moves_by_half_its_side_at_most_and_stays_in_the_image():
    mask, before = np.zeros((20, 30), bool), np.zeros((20, 30), bool)
    mask[4:8, 20:30], before[4:8, 0:10] = True, True
    assert next_box(mask, before, 0.0) == (24.0, 3.0, 29.0, 8.0)
    mask[19, 0] = True  # A speck, which is not followed.
    assert next_box(mask, None, 0.2) == (18.0, 3.0, 29.0, 8.0)
    one = np.zeros((5, 5), bool)
    one[0, 0] = True
    assert next_box(one, None, 0.0) == (0.0, 0.0, 1.0, 1.0)


@pytest.mark.parametrize(
    ("rules", "scores", "last", "why"),
    [
        ({"least_iou": 0.6}, {15: 0.59}, 14, r"the predicted IoU falls to 0.59, below 0.6"),
        ({"least_iou": 0.0}, {15: 0.01}, 20, "the next mask is empty"),
        ({"shrink": 0.5}, {}, 19, r"the area falls from 69 to 21 pixels, below 0.5 of it"),
        ({"slices": (10, 14)}, {}, 14, "the range of slices ends"),
    ],
)
def test_each_rule_stops_and_says_so(rules, scores, last, why):
    rules = {"margin": 0.2, "shrink": 0.0} | rules
    found = Perfect(ball(radius=8.4), scores).follow(12, (4, 4, 20, 20), **rules)
    assert max(found.masks) == last
    assert found.above == why


def test_a_mask_that_spills_over_is_not_taken():
    truth = ball()
    truth[15:] = True
    first = Step(12, NO_PROMPTS, SliceAnswer(truth[12]))
    found = propagate(lambda position, prompts: SliceAnswer(truth[position]), 24, first, PropagationRules(grow=2.5))
    assert max(found.masks) == 14
    assert found.above == f"the area grows from {truth[14].sum()} to 576 pixels, above 2.5 times as many"


def test_networks_without_a_score_never_stop_by_it():
    truth = np.ones((4, 6, 6), bool)
    first = Step(0, NO_PROMPTS, SliceAnswer(truth[0]))
    assert len(propagate(lambda position, _: SliceAnswer(truth[position]), 4, first).steps) == 4


def test_only_what_is_connected_with_the_first_mask_is_kept_as_scipy_counts_it():
    rng = np.random.default_rng(0)
    volume = rng.random((6, 12, 12)) > 0.85
    numbers, _ = ndimage.label(volume, structure=np.ones((3, 3, 3)))
    expected = np.isin(numbers, [number for number in np.unique(numbers[2]) if number])
    kept = keep_connected({position: volume[position] for position in range(6)}, 2)
    assert np.array_equal(np.stack([kept[position] for position in range(6)]), expected)
    assert expected.sum() < volume.sum()


def test_connected_drops_a_speck():
    truth = ball()
    truth[13, 5, 4] = True  # Not connected with the ball, but in its box.
    loose = Perfect(truth).follow(12, (4, 4, 20, 20), margin=0.1)
    tight = Perfect(truth).follow(12, (4, 4, 20, 20), margin=0.1, connected=True)
    assert loose.masks[13][5, 4]
    assert not tight.masks[13][5, 4]
    assert np.array_equal(tight.masks[13], ball()[13])


@pytest.mark.parametrize(
    ("position", "rules", "said"),
    [
        (24, {}, "has the slices 0 to 23, but the prompt is on slice 24"),
        (12, {"slices": (3, 24)}, "--slices names 3 to 24"),
        (12, {"slices": (13, 20)}, "the prompt is on slice 12, outside of --slices 13:20"),
        (0, {}, "the mask of slice 0 is empty, so there is nothing to follow"),
    ],
)
def test_what_cannot_be_followed_is_refused(position, rules, said):
    truth = ball()
    first = Step(position, NO_PROMPTS, SliceAnswer(truth[min(position, 23)]))
    with pytest.raises(DataError, match=said):
        propagate(Perfect(truth), 24, first, PropagationRules(**rules))


@pytest.mark.parametrize(
    ("rules", "said"),
    [
        ({"least_iou": 1.5}, "--least-iou: expected a number from 0"),
        ({"shrink": 1.0}, "got shrink 1.0"),
        ({"slices": (5, 2)}, "--slices: expected FIRST:LAST"),
    ],
)
def test_rules_that_cannot_be_meant_are_refused(rules, said):
    with pytest.raises(RecipeError, match=said):
        PropagationRules(**rules)


def test_a_model_with_classes_follows_nothing():
    parts = SamParts(SamBackbone("random_tiny", trainable=["mask_decoder"]))
    with pytest.raises(RecipeError, match="finds its classes a, b on every slice"):
        check_propagation(SemanticSegmenter(parts, classes=["a", "b"]))


@pytest.fixture
def predictor():
    torch.manual_seed(0)
    return Predictor(SamBackbone("random_tiny"))


ANY_SCORE = PropagationRules(least_iou=0.0, shrink=0.0, grow=1000.0)


def test_a_network_is_asked_slice_by_slice_with_the_box_of_the_mask_before(predictor):
    volume = np.random.default_rng(0).integers(0, 256, (5, 20, 30), dtype=np.uint8)
    found = predictor.propagate(volume, 2, box=(3, 4, 24, 15), rules=ANY_SCORE)
    predictor.set_image(volume[2])
    masks = {2: predictor.predict(box=(3, 4, 24, 15))[0][0]}
    for position, last, before in ((3, 2, None), (1, 2, None), (4, 3, 2)):
        predictor.set_image(volume[position])
        earlier = None if before is None else masks[before]
        masks[position] = predictor.predict(box=next_box(masks[last], earlier, ANY_SCORE.margin))[0][0]
    for position, mask in masks.items():
        assert np.array_equal(found.masks[position], mask)


def test_a_click_begins_as_well_as_a_box(predictor):
    volume = np.random.default_rng(0).integers(0, 256, (3, 20, 30), dtype=np.uint8)
    found = predictor.propagate(list(volume), 1, points=[(9, 7, 1)], rules=ANY_SCORE)
    predictor.set_image(volume[1])
    assert np.array_equal(found.masks[1], predictor.predict(point_coords=[(9, 7)], point_labels=[1])[0][0])
    with pytest.raises(ValueError, match="box must lie in the image of 30 x 20 pixels"):
        predictor.propagate(volume, 1, box=(3, 4, 50, 15))
    with pytest.raises(DataError, match="has the slices 0 to 2, but the prompt is on slice 7"):
        predictor.propagate(volume, 7, box=(3, 4, 20, 15))


@pytest.mark.parametrize(("axis", "orientation"), [("axial", "SPL"), ("coronal", "SPL"), ("coronal", "RAS")])
def test_a_file_is_followed_along_the_axis_of_the_training_on_its_own_voxels(predictor, axis, orientation):
    values = np.random.default_rng(0).integers(0, 256, (7, 20, 30), dtype=np.uint8)
    file = held_image(values, orientation=orientation, spacing_mm=(2.0, 1.0, 1.0))
    prompt = VolumePrompt(3, NO_PROMPTS.with_box((1.0, 1.0, 5.0, 5.0)), ANY_SCORE)
    answer = answer_file(Asking(predictor, TrainedData(axis, AS_STORED, of_volumes=True), volume_prompt=prompt), file, None)
    shown = np.stack([answer.slices.levels(position) for position in range(len(answer.slices))])
    found = predictor.propagate(shown, 3, box=(1, 1, 5, 5), rules=ANY_SCORE)
    assert len(found.masks) > 2
    for position in range(len(shown)):
        expected = found.masks.get(position, np.zeros(shown.shape[1:], bool))
        assert np.array_equal(answer.slices.cut(answer.volume, position) == 1, expected)
    assert answer.figures[0].pixels == sum(mask.sum() for mask in found.masks.values())
    record = json.loads(json.dumps(described(found, prompt)))
    assert [row["slice"] for row in record["slices"]] == sorted(found.masks)
    assert record["prompt"] == {"slice": 3, "points": [], "box": [1.0, 1.0, 5.0, 5.0]}


def test_a_single_image_has_no_slices_to_follow(predictor):
    file = held_image(np.zeros((1, 20, 30), np.uint8))
    prompt = VolumePrompt(0, NO_PROMPTS.with_box((1.0, 1.0, 5.0, 5.0)))
    with pytest.raises(DataError, match="is a single image"):
        answer_file(Asking(predictor, TrainedData(), volume_prompt=prompt), file, None)

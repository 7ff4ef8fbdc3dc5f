"""Prompts and clicks of Mazurowski et al., with each fault of the released code as a test of what is right."""

import numpy as np
import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.protocols.mazurowski import MODES, MazurowskiSettings, ask, clicks_needed, depths, next_click, pieces_of
from tests.protocols.shapes import TROUBLESOME, disc, empty, four_pieces, rectangle, ring

RNG = np.random.default_rng(0)


def brute_force_depths(mask):
    padded = np.pad(mask, 1)
    outside = np.argwhere(~padded)
    found = np.zeros(mask.shape)
    for y, x in np.argwhere(mask):
        found[y, x] = np.sqrt(((outside - (y + 1, x + 1)) ** 2).sum(axis=1)).min()
    return found


@pytest.mark.parametrize("mask", TROUBLESOME.values(), ids=TROUBLESOME.keys())
@pytest.mark.parametrize("mode", MODES)
def test_every_point_is_inside_and_every_box_holds_its_pieces(mask, mode):
    question = ask(mask, mode, np.random.default_rng(0))
    assert all(mask[int(y), int(x)] and label == 1 for x, y, label in question.points)
    assert all(x1 <= x2 < mask.shape[1] and y1 <= y2 < mask.shape[0] for x1, y1, x2, y2 in question.boxes)
    assert question.points or question.boxes


def test_depth_is_the_distance_to_the_background_and_the_border():
    mask = ring() | rectangle(0, 0, 7, 9)
    np.testing.assert_allclose(depths(mask), brute_force_depths(mask))


def test_pieces_touch_at_corners_and_come_largest_first():
    mask = four_pieces()
    mask[10, 10] = True  # a corner of the first
    assert [int(piece.sum()) for piece in pieces_of(mask)] == [65, 36, 16, 4]
    assert (np.logical_or.reduce(pieces_of(mask)) == mask).all()


def test_the_three_largest_of_four_pieces_are_asked_for():
    mask = four_pieces()
    assert len(ask(mask, "mode 1", RNG).points) == 1
    assert len(ask(mask, "mode 2", RNG).points) == 3
    assert ask(mask, "mode 3", RNG).boxes == ((2.0, 2.0, 9.0, 9.0),)
    assert ask(mask, "mode 4", RNG).boxes == ((2.0, 2.0, 9.0, 9.0), (20.0, 30.0, 25.0, 35.0), (60.0, 0.0, 63.0, 3.0))
    assert ask(mask, "mode 5", RNG).boxes == ((2.0, 0.0, 69.0, 39.0),)


def test_a_click_on_another_class_is_background():
    """The released code reads the label from the map of all classes, where any of them is above 0."""
    classes = np.zeros((40, 40), int)
    classes[5:15, 5:15], classes[20:36, 20:36] = 1, 2
    truth = classes == 1
    x, y, label = next_click(truth | (classes == 2), truth, RNG, error_map="joined")
    assert classes[int(y), int(x)] == 2
    assert label == 0


def test_touching_errors_are_told_apart():
    """Ten missed columns beside ten superfluous ones: joined, the deepest pixels lie on the line between the two."""
    truth, predicted = rectangle(20, 20, 40, 30), rectangle(20, 30, 40, 40)
    joined = next_click(predicted, truth, np.random.default_rng(0), error_map="joined")
    assert joined[0] in (29.0, 30.0)
    separate = next_click(predicted, truth, np.random.default_rng(0), error_map="separate")
    assert separate[0] in (24.0, 25.0)
    assert separate[2] == 1


def test_separate_clicks_go_to_the_deeper_error():
    truth = rectangle(0, 0, 30, 30)
    predicted = (truth & ~disc((10, 10), 3)) | disc((45, 45), 8)
    assert next_click(predicted, truth, RNG, error_map="separate") == (45.0, 45.0, 0)
    assert next_click(truth & ~disc((10, 10), 3), truth, RNG, error_map="separate") == (10.0, 10.0, 1)


def test_nothing_wrong_needs_no_click():
    assert next_click(ring(), ring(), RNG, error_map="joined") is None
    assert next_click(empty(), empty(), RNG, error_map="separate") is None


def test_a_prediction_on_an_empty_truth_is_clicked_away():
    assert next_click(disc((30, 20), 5), empty(), RNG, error_map="joined") == (20.0, 30.0, 0)


def test_ties_are_drawn_and_repeat_with_their_generator():
    line = rectangle(10, 0, 11, 60)
    drawn = {ask(line, "mode 1", np.random.default_rng(seed)).points for seed in range(20)}
    assert len(drawn) > 5
    assert ask(line, "mode 1", np.random.default_rng(3)) == ask(line, "mode 1", np.random.default_rng(3))


def test_clicks_that_never_suffice_count_as_all_of_them():
    ious = [0.2, 0.86, 0.91, 0.5]
    assert clicks_needed(ious, 0.85) == (2, True)
    assert clicks_needed(ious, 0.90) == (3, True)
    assert clicks_needed(ious, 0.95) == (4, False)


def test_unknown_mode_is_refused():
    with pytest.raises(RecipeError, match="numbers from 1 to 5, got mode 6"):
        MazurowskiSettings(modes=("mode 6",))

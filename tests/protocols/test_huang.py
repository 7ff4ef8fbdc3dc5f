"""Prompts of Huang et al.: every shape that broke the released code gives points with the right labels."""

import numpy as np
import pytest

from medsam_tune.errors import RecipeError
from medsam_tune.protocols.huang import (
    HuangSettings,
    ask,
    best_matches,
    dice_matrix,
    negative_points,
    positive_points,
    questions,
    spread_over,
)
from medsam_tune.protocols.questions import Displacement, tight_box
from tests.protocols.shapes import TROUBLESOME, c_shape, disc, rectangle, ring

EVERY_SHAPE = pytest.mark.parametrize("mask", TROUBLESOME.values(), ids=TROUBLESOME.keys())
ASKED = ("S2", "S3", "S4", "S5", "S6")


@EVERY_SHAPE
@pytest.mark.parametrize("strategy", ASKED)
def test_every_point_has_the_label_of_its_pixel(mask, strategy):
    question = ask(mask, strategy)
    assert all(mask[int(y), int(x)] == bool(label) for x, y, label in question.points)
    assert len(set(question.points)) == len(question.points)


@EVERY_SHAPE
def test_there_are_as_many_points_as_asked_for_or_as_pixels(mask):
    question = ask(mask, "S4")
    labels = [label for *_, label in question.points]
    assert labels.count(1) == min(5, mask.sum())
    assert labels.count(0) <= 5
    assert (labels.count(0) == 0) == mask.all()


def test_144_rectangles_all_have_five_points_of_each_kind():
    """With an integer stride 136 of them had more coordinates than labels, and 100 a wrong label."""
    for height in range(8, 20):
        for width in range(8, 20):
            mask = rectangle(20, 20, 20 + height, 20 + width)
            points = ask(mask, "S4").points
            assert [label for *_, label in points] == [1] * 5 + [0] * 5
            assert all(mask[int(y), int(x)] == bool(label) for x, y, label in points)


def test_centre_of_mass_is_clicked_where_it_is_inside():
    assert positive_points(disc((20, 31), 8), 1) == ((31.0, 20.0, 1),)


@pytest.mark.parametrize("mask", [ring(), c_shape()], ids=["ring", "C"])
def test_centre_of_mass_outside_is_replaced_by_the_middle_of_the_flattened_mask(mask):
    rows, columns = np.nonzero(mask)
    middle = len(rows) // 2
    assert not mask[int(np.rint(rows.mean())), int(np.rint(columns.mean()))]
    assert positive_points(mask, 1) == ((float(columns[middle]), float(rows[middle]), 1),)


def test_points_stand_at_equal_strides_over_the_flattened_mask():
    assert spread_over(np.ones((1, 10), bool), 5) == [(1, 0), (3, 0), (5, 0), (7, 0), (9, 0)]
    assert spread_over(np.zeros((2, 2), bool), 5) == []


def test_background_points_lie_in_the_box_at_twice_its_side():
    mask = rectangle(20, 20, 30, 30)
    points = negative_points(mask, 200)
    assert len(points) == 200
    assert all(15 <= x <= 34 and 15 <= y <= 34 for x, y, _ in points)


def test_box_holds_the_last_row_and_column_at_the_border():
    assert ask(rectangle(50, 40, 60, 60), "S5").boxes == ((40.0, 50.0, 59.0, 59.0),)


def test_empty_object_is_refused():
    with pytest.raises(ValueError, match="Skip empty objects"):
        ask(np.zeros((4, 4), bool), "S2")


def test_displacements_keep_labels_and_move_by_what_is_said():
    mask = rectangle(80, 80, 120, 120, 200, 200)
    settings = HuangSettings(strategies=("S4",), displacements=(Displacement(10, 20),), draws=3)
    still, *moved = questions(mask, settings, seed=0, image_id="a", object_name="1")
    assert [question.draw for question in moved] == [0, 1, 2]
    for question in moved:
        for (x, y, label), (x0, y0, label0) in zip(question.points, still.points, strict=True):
            assert 10 <= np.hypot(x - x0, y - y0) <= 20
            assert label == label0


def test_displaced_box_keeps_its_size_inside_the_image_and_ends_at_the_border():
    inside = rectangle(80, 80, 120, 140, 200, 200)
    settings = HuangSettings(strategies=("S5",), displacements=(Displacement(20, 30, "%"),), draws=4)
    for question in list(questions(inside, settings, seed=1, image_id="a", object_name="1"))[1:]:
        (x1, y1, x2, y2), (left, top, right, bottom) = question.boxes[0], tight_box(inside)
        assert (x2 - x1, y2 - y1) == pytest.approx((right - left, bottom - top))
        assert 0.2 * 60 - 1e-6 <= np.hypot(x1 - left, y1 - top) <= 0.3 * 60 + 1e-6
    corner = rectangle(0, 0, 6, 6)
    for question in questions(corner, HuangSettings(strategies=("S5",)), seed=0, image_id="a", object_name="1"):
        x1, y1, x2, y2 = question.boxes[0]
        assert 0 <= x1 <= x2 <= 59
        assert 0 <= y1 <= y2 <= 59


def test_a_draw_depends_on_seed_image_and_object_alone():
    mask, settings = disc((30, 30), 10), HuangSettings(strategies=("S2",))
    drawn = list(questions(mask, settings, seed=0, image_id="a", object_name="1"))
    alone = HuangSettings(strategies=("S2", "S5"), displacements=settings.displacements[1:])
    again = [each for each in questions(mask, alone, seed=0, image_id="a", object_name="1") if each.strategy == "S2"]
    assert [each for each in drawn if each.displacement != "0-10 px"] == again
    for other in ({"seed": 1}, {"image_id": "b"}, {"object_name": "2"}):
        asked = list(questions(mask, settings, **{"seed": 0, "image_id": "a", "object_name": "1", **other}))
        assert asked[0] == drawn[0]
        assert asked[1] != drawn[1]


@pytest.mark.parametrize("text", ["10px", "20-10px", "a-b", "-1-5px", "", "0-inf"])
def test_displacement_that_is_none_is_refused(text):
    with pytest.raises(RecipeError, match="--displacements: expected a range"):
        Displacement.parse(text)


def test_unknown_strategy_is_refused():
    with pytest.raises(RecipeError, match="got S7"):
        HuangSettings(strategies=("S7",))


def test_everything_mode_gives_each_object_the_mask_most_like_it():
    left, right = rectangle(0, 0, 10, 10), rectangle(0, 30, 10, 40)
    both, half = left | right, rectangle(0, 0, 10, 4)
    assert best_matches([both, half, right], [left, right]) == [0, 2]
    # Each of the two is half of what both show: the same mask may serve both.
    assert best_matches([both], [left, right]) == [0, 0]
    assert best_matches([], [left]) == [None]


def test_dice_matrix_is_the_formula_on_paper():
    left, both = rectangle(0, 0, 10, 10), rectangle(0, 0, 10, 20)
    assert dice_matrix([both], [left])[0, 0] == pytest.approx((2 * 100 + 0.1) / (300 + 0.1))
    assert dice_matrix([both], [np.zeros((60, 60), bool)])[0, 0] == pytest.approx(0.1 / 200.1)

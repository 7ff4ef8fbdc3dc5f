"""Every draw from a mask: inside, containing, repeatable, and of its own object only."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy import ndimage

from medsam_tune.errors import RecipeError
from medsam_tune.geometry import Frame, InputRule, make_frame, masks_to_input
from medsam_tune.masks import ObjectMasks
from medsam_tune.prompts.sampling import (
    BoxJitter,
    jitter_boxes,
    object_generators,
    object_rows,
    point_inside,
    sample_points,
    tight_boxes,
    visible_masks,
    whole_image_boxes,
)
from tests.factories import make_batch, with_masks

SIDE = 24


def _mask(*boxes):
    mask = np.zeros((SIDE, SIDE), bool)
    for y1, x1, y2, x2 in boxes:
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    return mask


def _ring():
    y, x = np.mgrid[:SIDE, :SIDE]
    radius = np.hypot(y - 12, x - 12)
    return (radius > 6) & (radius < 9)


SHAPES = {
    "concave": _mask((2, 2, 20, 4), (2, 2, 4, 20), (18, 2, 20, 20)),
    "ring": _ring(),
    "parts": _mask((1, 1, 3, 3), (18, 19, 22, 21), (0, 23, 0, 23)),
    "pixel": _mask((7, 15, 7, 15)),
    "corner_pixel": _mask((0, 0, 0, 0)),
    "everything": np.ones((SIDE, SIDE), bool),
}
REGION = np.ones((SIDE, SIDE), bool)
RULES = ("random", "distance", "mass")


def _rngs(count, seed=0):
    return iter([np.random.default_rng([seed, row]) for row in range(count)])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_point_is_always_inside(shape, rule):
    mask = SHAPES[shape]
    for seed in range(100):
        x, y = point_inside(mask, rule, np.random.default_rng(seed))
        assert mask[y, x]


def test_random_point_reaches_every_pixel():
    mask = SHAPES["parts"]
    rng = np.random.default_rng(0)
    found = {point_inside(mask, "random", rng) for _ in range(1000)}
    assert found == {(int(x), int(y)) for y, x in np.argwhere(mask)}


def test_point_is_x_then_y():
    assert point_inside(_mask((7, 15, 7, 15)), "random", np.random.default_rng(0)) == (15, 7)


@pytest.mark.parametrize("shape", SHAPES)
def test_distance_point_is_a_maximum_of_scipys_transform_of_the_whole_padded_mask(shape):
    distance = ndimage.distance_transform_edt(np.pad(SHAPES[shape], 1))[1:-1, 1:-1]
    x, y = point_inside(SHAPES[shape], "distance", np.random.default_rng(3))
    assert distance[y, x] == distance.max()


def test_centre_of_mass_of_a_ring_falls_back_into_the_ring():
    assert not _ring()[12, 12]
    found = {point_inside(_ring(), "mass", np.random.default_rng(seed)) for seed in range(20)}
    assert len(found) > 5


def test_centre_of_mass_of_a_rectangle_is_its_middle():
    assert point_inside(_mask((2, 4, 6, 12)), "mass", np.random.default_rng(0)) == (8, 4)


def test_point_in_an_empty_mask_is_refused():
    with pytest.raises(ValueError, match="Skip empty objects"):
        point_inside(np.zeros((4, 4), bool), "random", np.random.default_rng(0))


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("shape", SHAPES)
def test_every_label_fits_its_pixel_and_no_pixel_is_taken_twice(shape, rule):
    # Huang et al.'s sampler gave wrong labels on 100 of 144 rectangles and crashed on objects below 5 pixels.
    mask = SHAPES[shape]
    for seed in range(20):
        points = sample_points(mask, REGION, positives=5, negatives=5, rule=rule, rng=np.random.default_rng(seed))
        assert len({(x, y) for x, y, _ in points}) == len(points)
        assert all(mask[y, x] == bool(label) for x, y, label in points)
        assert sum(label for *_, label in points) == min(5, mask.sum())
        # One pixel in a corner has three neighbours, an object that fills the image has none.
        assert sum(1 - label for *_, label in points) == {"corner_pixel": 3, "everything": 0}.get(shape, 5)


def test_background_points_lie_in_the_box_at_twice_its_side():
    mask = _mask((8, 8, 11, 13))
    points = sample_points(mask, REGION, positives=0, negatives=200, rule="random", rng=np.random.default_rng(0))
    # Rows 8 to 11 grow by 2 on both sides, columns 8 to 13 by 3.
    assert {y for _, y, _ in points} == set(range(6, 14))
    assert {x for x, _, _ in points} == set(range(5, 17))
    assert len(points) == 8 * 12 - 4 * 6


def test_points_stay_out_of_the_padding():
    region = np.zeros((SIDE, SIDE), bool)
    region[:10] = True
    points = sample_points(
        _mask((0, 0, 20, 5)), region, positives=40, negatives=40, rule="random", rng=np.random.default_rng(0)
    )
    assert points
    assert all(y < 10 for _, y, _ in points)


def test_empty_object_has_no_foreground_point():
    points = sample_points(np.zeros_like(REGION), REGION, positives=3, negatives=2, rule="random", rng=np.random.default_rng(0))
    assert [label for *_, label in points] == [0, 0]


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("jitter", [BoxJitter(7), BoxJitter(0.5, unit="fraction"), BoxJitter(0.5, unit="fraction", max_px=3.0)])
def test_box_that_only_grows_contains_its_object(shape, jitter):
    mask = torch.from_numpy(SHAPES[shape])[None, None].expand(50, 1, SIDE, SIDE)
    limits = torch.tensor([[0.0, 0.0, SIDE - 1, SIDE - 1]]).expand(50, 4)
    boxes = jitter_boxes(tight_boxes(ObjectMasks.of(mask[:, 0]), limits), jitter, limits=limits, generators=_rngs(50))
    y, x = np.nonzero(SHAPES[shape])
    assert (boxes[:, 0] <= x.min()).all()
    assert (boxes[:, 1] <= y.min()).all()
    assert (boxes[:, 2] >= x.max()).all()
    assert (boxes[:, 3] >= y.max()).all()
    assert (boxes >= 0).all()
    assert (boxes <= SIDE - 1).all()


def test_pixel_moves_are_whole_and_reach_both_ends():
    boxes = torch.tensor([[30.0, 30.0, 40.0, 40.0]]).expand(300, 4)
    limits = torch.tensor([[0.0, 0.0, 99.0, 99.0]]).expand(300, 4)
    moved = jitter_boxes(boxes, BoxJitter(3, low=1), limits=limits, generators=_rngs(300))
    assert set((30 - moved[:, 0]).tolist()) == {1.0, 2.0, 3.0}
    assert set((moved[:, 3] - 40).tolist()) == {1.0, 2.0, 3.0}


def test_sides_move_apart_from_each_other():
    boxes = torch.tensor([[30.0, 30.0, 40.0, 40.0]]).expand(100, 4)
    moved = jitter_boxes(boxes, BoxJitter(20), limits=torch.tensor([[0, 0, 99.0, 99.0]]).expand(100, 4), generators=_rngs(100))
    moves = (moved - boxes).abs()
    assert np.abs(np.corrcoef(moves.T.numpy()) - np.eye(4)).max() < 0.35


def test_fixed_fraction_moves_each_side_by_its_own_length():
    boxes = torch.tensor([[40.0, 40.0, 59.0, 49.0]])
    limits = torch.tensor([[0.0, 0.0, 99.0, 99.0]])
    moved = jitter_boxes(boxes, BoxJitter(0.1, low=0.1, unit="fraction"), limits=limits, generators=_rngs(1))
    assert torch.allclose(moved, torch.tensor([[38.0, 39.0, 61.0, 50.0]]))


def test_fraction_is_limited_in_pixels():
    moved = jitter_boxes(
        torch.tensor([[100.0, 100.0, 299.0, 299.0]]),
        BoxJitter(0.5, low=0.5, unit="fraction", max_px=20.0),
        limits=torch.tensor([[0.0, 0.0, 999.0, 999.0]]),
        generators=_rngs(1),
    )
    assert moved.tolist() == [[80.0, 80.0, 319.0, 319.0]]


def test_signed_moves_go_both_ways_and_never_turn_a_box_over():
    boxes = torch.tensor([[10.0, 10.0, 14.0, 10.0]]).expand(300, 4)
    limits = torch.tensor([[0.0, 0.0, 99.0, 99.0]]).expand(300, 4)
    moved = jitter_boxes(boxes, BoxJitter(5, signed=True), limits=limits, generators=_rngs(300))
    assert (moved[:, 0] < 10).any()
    assert (moved[:, 0] > 10).any()
    assert (moved[:, :2] <= moved[:, 2:]).all()


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"high": 2, "low": 3}, "expected 0 <= low <= high"),
        ({"high": -1}, "expected 0 <= low <= high"),
        ({"high": 0.1}, "set unit: fraction"),
        ({"high": 20, "max_px": 5.0}, "limits unit fraction"),
    ],
)
def test_impossible_jitter_is_refused(settings, text):
    with pytest.raises(RecipeError, match=text):
        BoxJitter(**settings)


def test_draws_depend_on_seed_epoch_purpose_image_and_row():
    batch = replace(make_batch(objects=(2, 1)), training=True)

    def numbers(batch, seed=0, purpose="box"):
        return [rng.integers(2**40) for rng in object_generators(replace(batch, seed=seed), purpose=purpose)]

    first = numbers(batch)
    assert first == numbers(batch)
    assert len(set(first)) == 3
    others = [numbers(replace(batch, epoch=1)), numbers(batch, seed=1), numbers(batch, purpose="point")]
    assert all(not set(first) & set(other) for other in others)


def test_evaluation_draws_the_same_in_every_epoch():
    batch = make_batch()
    first, second = (
        [rng.integers(2**40) for rng in object_generators(replace(batch, epoch=epoch), purpose="box")] for epoch in (0, 5)
    )
    assert first == second


def test_rows_count_within_each_image():
    assert object_rows(torch.tensor([2, 0, 0, 2, 1])) == [0, 0, 1, 1, 0]


def test_object_that_is_not_seen_in_the_input_frame_is_given_the_pixel_it_lies_in():
    original = torch.zeros(2, 200, 200, dtype=torch.bool)
    original[0, 50, 101] = True
    original[1, 20:80, 20:80] = True
    frame = make_frame((200, 200), InputRule(side=10))
    masks = masks_to_input(ObjectMasks.of(original), frame, 10).dense()[:, None]
    masks[0] = False
    batch = replace(with_masks(make_batch(sizes=((64, 64),), objects=(2,)), masks, (original,)), frames=(frame,))
    seen = visible_masks(batch).dense()[:, None]
    # Pixel 50.5 of 200 lies in input row 2 of 10, 101.5 in column 5.
    assert seen[0, 0].nonzero().tolist() == [[2, 5]]
    assert torch.equal(seen[1], masks[1])
    assert not batch.masks[0].any()


def test_object_that_is_empty_stays_empty():
    batch = make_batch()
    empty = with_masks(batch, torch.zeros_like(batch.masks), tuple(torch.zeros_like(m.dense()) for m in batch.original_masks))
    assert not visible_masks(empty).any()


def test_whole_image_boxes_of_no_image_are_an_empty_table():
    assert whole_image_boxes([]).shape == (0, 4)
    assert whole_image_boxes([Frame((8, 8), (16, 16))]).tolist() == [[0, 0, 15, 15]]

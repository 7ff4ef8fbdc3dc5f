"""Masks, boxes and points on their way between the original and the input frame."""

import pytest
import torch
import torch.nn.functional as F
from segment_anything.utils.transforms import ResizeLongestSide
from torchvision.ops import masks_to_boxes

from medsam_tune.geometry import (
    Frame,
    InputRule,
    boxes_to_input,
    boxes_to_original,
    make_frame,
    masks_to_input,
    normalise,
    points_to_input,
    points_to_original,
    resize_region,
    valid_region,
)
from medsam_tune.masks import ObjectMasks


def _to_input(masks: torch.Tensor, frame: Frame, side: int) -> torch.Tensor:
    return masks_to_input(ObjectMasks.of(masks), frame, side).dense()


def _one_pixel(size, y, x):
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, y, x] = True
    return masks


@pytest.mark.parametrize(("y", "x", "expected"), [(50, 101, [2, 5]), (0, 0, [0, 0]), (199, 199, [9, 9]), (61, 137, [3, 6])])
def test_object_too_small_to_be_hit_keeps_the_input_pixel_it_lies_in(y, x, expected):
    frame = make_frame((200, 200), InputRule(side=10))
    assert _to_input(_one_pixel((200, 200), y, x), frame, 10)[0].nonzero().tolist() == [expected]


def test_small_object_beside_padding_stays_in_the_image():
    frame = make_frame((100, 200), InputRule(side=10))
    assert _to_input(_one_pixel((100, 200), 99, 199), frame, 10)[0].nonzero().tolist() == [[4, 9]]


def test_no_object_of_any_size_vanishes_and_none_appears():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 190, (100, 2), generator=generator).tolist()
    masks = torch.zeros(101, 200, 200, dtype=torch.bool)
    for row, (y, x) in enumerate(corners):
        masks[row, y : y + 1 + row % 10, x : x + 1 + row % 7] = True
    seen = _to_input(masks, make_frame((200, 200), InputRule(side=16)), 16).flatten(1).any(dim=1)
    assert seen[:100].all()
    assert not seen[100]


def test_thin_line_that_is_not_hit_keeps_its_length_and_two_dots_their_distance():
    frame = make_frame((200, 200), InputRule(side=10))
    masks = torch.zeros(2, 200, 200, dtype=torch.bool)
    masks[0, 40:100, 61] = True  # rows 2 to 4 of 10, between the centres of columns 3 and 4
    masks[1, 1, 1] = masks[1, 199, 199] = True
    assert _to_input(masks, frame, 10).nonzero().tolist() == [[0, 2, 3], [0, 3, 3], [0, 4, 3], [1, 0, 0], [1, 9, 9]]


def test_object_that_is_hit_is_the_nearest_neighbours_own():
    masks = torch.zeros(1, 40, 40, dtype=torch.bool)
    masks[0, 8:24, 12:20] = True
    expected = torch.zeros(1, 10, 10, dtype=torch.bool)
    expected[0, 2:6, 3:5] = True
    assert torch.equal(_to_input(masks, make_frame((40, 40), InputRule(side=10)), 10), expected)


def _frames():
    """Frames that enlarge, shrink, keep, and stretch, with an object's first and last row and column."""
    generator = torch.Generator().manual_seed(4)
    for case in range(120):
        height, width, side = (int(torch.randint(5, 160, (1,), generator=generator)) for _ in range(3))
        rule = InputRule(height if case % 10 == 0 else side, "square" if case % 3 == 0 else "longest_side")
        rows, columns = (torch.randint(0, n, (2,), generator=generator).sort().values.tolist() for n in (height, width))
        yield make_frame((height, width), rule), rule.side, rows, columns


def _box(rows, columns):
    return torch.tensor([columns[0], rows[0], columns[1], rows[1]], dtype=torch.float64)


def test_moved_box_of_an_object_is_the_box_of_the_moved_object_to_half_a_pixel():
    seen = 0
    for frame, side, rows, columns in _frames():
        mask = torch.zeros(1, *frame.original_size, dtype=torch.bool)
        mask[0, rows[0] : rows[1] + 1, columns[0] : columns[1] + 1] = True
        # An object that no input pixel's centre hits is drawn as one pixel, whose box is another matter.
        hit = F.interpolate(mask[None].float(), frame.input_size, mode="nearest-exact").any()
        if hit:
            expected = masks_to_boxes(_to_input(mask, frame, side))[0].double()
            assert (boxes_to_input(_box(rows, columns), frame) - expected).abs().max() <= 0.5 + 1e-6
            seen += 1
    assert seen > 100


def test_box_moved_there_and_back_is_the_same_box():
    for frame, _, rows, columns in _frames():
        box = _box(rows, columns)
        moved = boxes_to_input(box, frame)
        if (moved[2:] > moved[:2]).all():  # what shrinks below a pixel becomes a point
            torch.testing.assert_close(boxes_to_original(moved, frame), box)


def test_box_that_shrinks_below_a_pixel_stays_where_the_object_is_kept():
    frame = make_frame((200, 200), InputRule(side=10))
    masks = _one_pixel((200, 200), 61, 137)
    moved = boxes_to_input(masks_to_boxes(masks), frame)
    assert moved[0, :2].tolist() == moved[0, 2:].tolist()
    assert (moved - masks_to_boxes(_to_input(masks, frame, 10))).abs().max() <= 0.5


def test_point_moved_there_and_back_is_the_same_point():
    for frame, _, rows, columns in _frames():
        points = torch.tensor([[columns[0], rows[0]], [columns[1], rows[1]]], dtype=torch.float64)
        torch.testing.assert_close(points_to_original(points_to_input(points, frame), frame), points)


def test_point_moves_to_the_middle_of_the_input_pixels_that_show_its_pixel():
    for frame, side, rows, columns in _frames():
        scale = [to / of for to, of in zip(frame.input_size, frame.original_size, strict=True)]
        mask = _one_pixel(frame.original_size, rows[0], columns[0])
        shown = _to_input(mask, frame, side)[0].nonzero().double().mean(dim=0).flip(0)
        moved = points_to_input(torch.tensor([columns[0], rows[0]], dtype=torch.float64), frame)
        assert (moved - shown).abs().max() <= 0.5 * max(1, *scale) / min(1, *scale)
    enlarged = Frame((4, 4), (16, 16))
    assert points_to_input(torch.tensor([1.0, 3.0]), enlarged).tolist() == [5.5, 13.5]  # pixels 4 to 7 and 12 to 15


def test_where_no_resize_happens_boxes_and_points_are_the_librarys():
    frame = make_frame((48, 64), InputRule(side=64))
    library = ResizeLongestSide(64)
    corners = torch.tensor([[3, 5, 20, 30], [0, 0, 63, 47]], dtype=torch.float64)
    assert torch.equal(boxes_to_input(corners, frame), library.apply_boxes_torch(corners, (48, 64)))
    points = corners.reshape(-1, 2)
    assert torch.equal(points_to_input(points, frame), library.apply_coords_torch(points, (48, 64)))


def test_box_of_the_whole_image_becomes_the_box_of_the_valid_area():
    for frame, *_ in _frames():
        (height, width), (input_height, input_width) = frame.original_size, frame.input_size
        moved = boxes_to_input(torch.tensor([0, 0, width - 1, height - 1], dtype=torch.float64), frame)
        torch.testing.assert_close(moved, torch.tensor([0, 0, input_width - 1, input_height - 1], dtype=torch.float64))


@pytest.mark.parametrize("size", [(1, 64), (64, 1), (3, 200), (1, 1)])
def test_valid_region_of_a_thin_image_never_vanishes(size):
    frame = make_frame(size, InputRule(side=64))
    region = valid_region([frame], 64)
    small = resize_region(region, (16, 16))
    assert small.any()
    assert not (small & ~F.adaptive_max_pool2d(region.float(), (16, 16)).bool()).any()


def test_object_of_one_pixel_is_kept_at_the_decoders_resolution_and_others_are_as_nearest_neighbour_has_them():
    masks = torch.zeros(3, 1, 64, 64, dtype=torch.bool)
    masks[0, 0, 5, 9] = True
    masks[1, 0, 8:24, 12:30] = True
    small = resize_region(masks, (16, 16))
    assert small[0].nonzero().tolist() == [[0, 1, 2]]
    assert torch.equal(small[1], F.interpolate(masks[1:2].float(), (16, 16), mode="nearest-exact")[0] > 0.5)
    assert not small[2].any()


UNIT = InputRule(64, min_max=True, mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0))


def test_a_few_fused_pixels_set_no_contrast_where_the_limits_are_the_unfused_images():
    image = torch.linspace(0, 200, 64 * 64).reshape(1, 1, 64, 64).expand(1, 3, -1, -1).clone()
    fused, frames = image.clone(), [make_frame((64, 64), UNIT)]
    fused[:, 1, 10:14, 10:18] += 3 * 255  # three masks over each other on 32 of 4,096 pixels
    plain, seen = normalise(image, frames, UNIT), normalise(fused, frames, UNIT, limits=image)
    assert torch.equal(seen[:, 0], plain[:, 0])
    assert normalise(fused, frames, UNIT)[:, 0].max() < 0.3  # what the red channel is left with under its own limits
    torch.testing.assert_close(seen[0, 1, 10, 10] - plain[0, 1, 10, 10], torch.tensor(3 * 255 / 200))


def test_limits_mean_nothing_to_a_rule_without_min_max():
    images = torch.rand(1, 3, 64, 64) * 255
    rule, frames = InputRule(64), [make_frame((64, 64), InputRule(64))]
    assert torch.equal(normalise(images, frames, rule, limits=images * 2), normalise(images, frames, rule))

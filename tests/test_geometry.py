"""Masks on their way to the input frame."""

import pytest
import torch

from medsam_tune.geometry import InputRule, make_frame, masks_to_input


def _one_pixel(size, y, x):
    masks = torch.zeros(1, *size, dtype=torch.bool)
    masks[0, y, x] = True
    return masks


@pytest.mark.parametrize(("y", "x", "expected"), [(50, 101, [2, 5]), (0, 0, [0, 0]), (199, 199, [9, 9]), (61, 137, [3, 6])])
def test_object_too_small_to_be_hit_keeps_the_input_pixel_it_lies_in(y, x, expected):
    frame = make_frame((200, 200), InputRule(side=10))
    assert masks_to_input(_one_pixel((200, 200), y, x), frame, 10)[0].nonzero().tolist() == [expected]


def test_small_object_beside_padding_stays_in_the_image():
    frame = make_frame((100, 200), InputRule(side=10))
    assert masks_to_input(_one_pixel((100, 200), 99, 199), frame, 10)[0].nonzero().tolist() == [[4, 9]]


def test_no_object_of_any_size_vanishes_and_none_appears():
    generator = torch.Generator().manual_seed(0)
    corners = torch.randint(0, 190, (100, 2), generator=generator).tolist()
    masks = torch.zeros(101, 200, 200, dtype=torch.bool)
    for row, (y, x) in enumerate(corners):
        masks[row, y : y + 1 + row % 10, x : x + 1 + row % 7] = True
    seen = masks_to_input(masks, make_frame((200, 200), InputRule(side=16)), 16).flatten(1).any(dim=1)
    assert seen[:100].all()
    assert not seen[100]


def test_object_that_is_hit_is_the_nearest_neighbours_own():
    masks = torch.zeros(1, 40, 40, dtype=torch.bool)
    masks[0, 8:24, 12:20] = True
    expected = torch.zeros(1, 10, 10, dtype=torch.bool)
    expected[0, 2:6, 3:5] = True
    assert torch.equal(masks_to_input(masks, make_frame((40, 40), InputRule(side=10)), 10), expected)

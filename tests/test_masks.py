"""Masks cut to their boxes are the planes that they were made of, and their memory follows their pixels."""

import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from medsam_tune.data.labels import find_objects
from medsam_tune.data.targets import apply_target, connected_pieces
from medsam_tune.masks import ObjectMasks
from medsam_tune.samples import Sample
from medsam_tune.types import Truth


def planes(n=5, size=(9, 12), seed=0, share=0.1):
    """Random planes that overlap, the second of them empty."""
    masks = torch.rand(n, *size, generator=torch.Generator().manual_seed(seed)) < share
    if n > 1:
        masks[1] = False
    return masks


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 6), st.integers(1, 9), st.integers(1, 9), st.integers(0, 99))
def test_planes_come_back_whatever_they_show(n, height, width, seed):
    masks = planes(n, (height, width), seed, share=0.2)
    held = ObjectMasks.of(masks)
    assert held.shape == masks.shape
    assert torch.equal(held.dense(), masks)
    assert torch.equal(held.shown(), masks.flatten(1).any(dim=1))
    assert held.areas().tolist() == masks.flatten(1).sum(dim=1).tolist()
    assert torch.equal(held.counts(), masks.sum(dim=0).int())
    assert torch.equal(held.union(), masks.any(dim=0))
    assert held.any() == bool(masks.any())


def test_rows_parts_and_single_masks_are_those_of_the_planes():
    masks = planes()
    held = ObjectMasks.of(masks)
    for rows in (torch.tensor([3, 0]), torch.tensor([True, False, True, False, False]), torch.zeros(5, dtype=torch.bool)):
        assert torch.equal(held.rows(rows).dense(), masks[rows])
    assert torch.equal(held.dense(slice(1, 3)), masks[1:3])
    assert torch.equal(held[-1], masks[-1])
    assert torch.equal(torch.stack(list(held)), masks)
    area = (slice(2, 7), slice(5, 12))
    assert torch.equal(held.part(area).dense(), masks[:, 2:7, 5:12])
    assert torch.equal(ObjectMasks.join([held, held.rows(torch.tensor([2]))]).dense(), torch.cat([masks, masks[2:3]]))
    with pytest.raises(IndexError):
        held[5]


def test_numbered_plane_gives_one_mask_a_number_and_absent_numbers_an_empty_one():
    numbers = np.array([[0, 3, 3], [1, 0, 3]])
    assert ObjectMasks.of_numbers(numbers, 3).dense().int().tolist() == [
        [[0, 0, 0], [1, 0, 0]],
        [[0, 0, 0], [0, 0, 0]],
        [[0, 1, 1], [0, 0, 1]],
    ]


def test_values_of_any_sign_and_size_are_rows_in_their_order():
    values = np.array([[-2, 0, 7], [40_000, -2, 7]], np.int64)
    shown = find_objects(values, None, ignore_label=40_000)
    assert shown.labels.tolist() == [-2, 7]
    assert shown.masks.dense().int().tolist() == [[[1, 0, 0], [0, 1, 0]], [[0, 0, 1], [0, 0, 1]]]
    assert shown.ignored.int().tolist() == [[0, 0, 0], [1, 0, 0]]


def test_tensors_are_taken_by_what_travels_and_can_be_pickled():
    masks = planes()
    sample = Sample(torch.zeros(3, 9, 12), masks, torch.ones(5, dtype=torch.int64), "a", "a")
    truth = Truth(masks[:, None], (masks[:2], masks[2:]))
    assert torch.equal(sample.masks.dense(), masks)
    assert torch.equal(truth.masks.dense(), masks)
    assert torch.equal(pickle.loads(pickle.dumps(truth)).original_masks[1].dense(), masks[2:])


def test_hundreds_of_objects_are_held_in_about_a_plane_of_memory():
    side, step = 800, 40
    numbers = np.zeros((side, side), np.int32)
    for number in range((side // step) ** 2):
        top, left = step * (number // (side // step)), step * (number % (side // step))
        numbers[top : top + 30, left : left + 30] = number + 1
    cells = find_objects(numbers, None).masks
    assert len(cells) == 400
    assert cells.pixels.numel() == 400 * 30 * 30 < side * side
    pieces = connected_pieces(torch.from_numpy(numbers > 0))
    assert pieces.pixels.numel() == cells.pixels.numel()
    # A view would keep what it was cut from.
    assert pieces.pixels.untyped_storage().nbytes() == pieces.pixels.numel()
    sample = Sample(torch.zeros(3, side, side), cells, torch.ones(400, dtype=torch.int64), "a", "a")
    assert len(apply_target(sample, "per_instance").masks) == 400

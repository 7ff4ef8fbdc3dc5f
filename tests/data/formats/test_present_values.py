from __future__ import annotations

import numpy as np
import pytest

from medsam_tune.data.formats.present_values import count_values, number_values, present_values
from medsam_tune.data.labels import find_objects

ARRAYS = {
    "labels": np.array([[0, 3, 3], [7, 0, 3]], np.int32),
    "no background": np.array([[2, 5]], np.uint8),
    "below zero": np.array([4, -3, 4, 0], np.int16),
    "far apart": np.array([0, 2**31 - 1, 1]),
    "largest": np.array([2**64 - 1, 2**64 - 2], np.uint64),
    "fractions": np.array([0.5, 0.0, 0.5]),
    "bools": np.array([True, False]),
    "nothing": np.zeros((0, 4), np.int32),
}


@pytest.mark.parametrize("values", ARRAYS.values(), ids=ARRAYS)
def test_values_are_those_of_sorting_all_of_them(values):
    expected, places, counts = np.unique(values, return_inverse=True, return_counts=True)
    numbered = number_values(values)
    counted = count_values(values)
    for found in (present_values(values), numbered[0], counted[0]):
        np.testing.assert_array_equal(found, expected, strict=True)
    np.testing.assert_array_equal(numbered[1], places.reshape(values.shape), strict=True)
    np.testing.assert_array_equal(counted[1], counts, strict=True)


@pytest.mark.parametrize("least", [0, -5])
def test_objects_are_numbered_in_the_order_of_their_values_without_background(least):
    values = np.array([[9, 9, 0], [least, 4, 0]])
    shown = find_objects(values, None)
    expected = [value for value in (least, 4, 9) if value]
    assert shown.labels.tolist() == expected
    for row, value in enumerate(expected):
        assert shown.masks[row].tolist() == (values == value).tolist()

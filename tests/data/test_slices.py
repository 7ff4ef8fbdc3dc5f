import numpy as np
import pytest

from medsam_tune.data.slices import SliceRule, put_slice, slice_spacing, take_slice
from medsam_tune.errors import RecipeError


def test_even_positions_are_the_middles_of_equal_parts():
    assert SliceRule(count=3).positions(12) == [2, 6, 10]
    assert SliceRule(count=2, range=(0.5, 1.0)).positions(12) == [7, 10]


@pytest.mark.parametrize("length", [1, 2, 5, 34])
@pytest.mark.parametrize("count", [1, 3, 40])
def test_positions_are_distinct_and_inside_whatever_the_length(length, count):
    positions = SliceRule(count=count).positions(length)
    assert positions == sorted(set(positions))
    assert len(positions) == min(count, length)
    assert 0 <= positions[0] <= positions[-1] < length


def test_step_starts_at_the_first_position_of_the_range():
    assert SliceRule(step=4, range=(0.25, 1.0)).positions(12) == [3, 7, 11]
    assert SliceRule().positions(3) == [0, 1, 2]


@pytest.mark.parametrize("settings", [{"count": 2, "step": 2}, {"count": 0}, {"step": 0}, {"range": (0.5, 0.5)}])
def test_rules_that_choose_nothing_are_refused(settings):
    with pytest.raises(RecipeError, match=r"data\.source\.slices"):
        SliceRule(**settings)


# One voxel at the patient's far right, front and top of a volume (X, Y, Z) = (4, 5, 6).
@pytest.mark.parametrize(
    ("axis", "position", "row_column"),
    [("axial", 5, (0, 0)), ("coronal", 4, (0, 0)), ("sagittal", 3, (0, 0))],
)
def test_head_and_front_are_up_and_the_right_side_is_on_the_left(axis, position, row_column):
    volume = np.zeros((4, 5, 6))
    volume[3, 4, 5] = 1
    assert tuple(np.argwhere(take_slice(volume, axis, position))[0]) == row_column


def test_rows_of_a_coronal_slice_run_along_the_body():
    volume = np.zeros((4, 5, 6))
    volume[3, 2, 0] = 1  # right, bottom
    assert tuple(np.argwhere(take_slice(volume, "coronal", 2))[0]) == (5, 0)


@pytest.mark.parametrize("axis", ["sagittal", "coronal", "axial"])
def test_put_slice_undoes_take_slice(axis):
    volume = np.random.default_rng(0).random((4, 5, 6))
    length = volume.shape[["sagittal", "coronal", "axial"].index(axis)]
    rebuilt = np.zeros_like(volume)
    for position in range(length):
        put_slice(rebuilt, axis, position, take_slice(volume, axis, position))
    assert np.array_equal(rebuilt, volume)


def test_spacing_is_that_of_the_rows_then_of_the_columns():
    assert slice_spacing((1.0, 2.0, 3.0), "axial") == (2.0, 1.0)
    assert slice_spacing((1.0, 2.0, 3.0), "coronal") == (3.0, 1.0)
    assert slice_spacing((1.0, 2.0, 3.0), "sagittal") == (3.0, 2.0)

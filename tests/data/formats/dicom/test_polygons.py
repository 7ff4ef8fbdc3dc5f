import numpy as np
import pytest
from matplotlib.path import Path as Outline

from medsam_tune.data.formats.dicom.polygons import fill_polygons, outline_pixels


@pytest.mark.parametrize("seed", range(5))
def test_pixels_inside_are_those_that_matplotlib_finds(seed):
    corners = np.random.default_rng(seed).uniform(-3, 23, (7, 2))
    rows, columns = np.mgrid[:20, :17]
    centres = np.column_stack([rows.ravel(), columns.ravel()])
    # Triangles from one corner: a point inside an odd number of them is inside the polygon by the same rule.
    expected = np.zeros((20, 17), bool)
    for number in range(1, 6):
        expected ^= Outline(corners[[0, number, number + 1]]).contains_points(centres).reshape(20, 17)
    np.testing.assert_array_equal(fill_polygons([corners], (20, 17)), expected)


@pytest.mark.parametrize("seed", range(5))
def test_outlines_filled_are_the_mask_again(seed):
    mask = np.random.default_rng(seed).random((9, 11)) < 0.5
    np.testing.assert_array_equal(fill_polygons(outline_pixels(mask), mask.shape), mask)


def test_outlines_go_around_objects_and_holes_and_meet_at_no_corner():
    mask = np.zeros((8, 8), bool)
    mask[1:5, 1:5] = True
    mask[2, 2] = False
    mask[5, 5] = True
    outlines = outline_pixels(mask)
    assert sorted(len(outline) for outline in outlines) == [4, 4, 4]
    assert outline_pixels(np.zeros((3, 3), bool)) == []

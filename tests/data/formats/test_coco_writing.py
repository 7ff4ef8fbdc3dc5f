"""Objects written as COCO: polygons that cover exactly the pixels of their masks."""

import json

import numpy as np
import pytest

from medsam_tune.data.coco_files import Drawn, decode
from medsam_tune.data.formats.base import image_header
from medsam_tune.data.formats.coco_writing import CocoPolygons, FoundObject, outlines_of

RING = np.zeros((9, 11), bool)
RING[1:8, 2:9] = True
RING[3:6, 4:6] = False


@pytest.mark.parametrize("seed", range(6))
def test_polygons_of_any_mask_are_that_mask_again_by_cocos_own_rules(seed):
    mask = np.random.default_rng(seed).random((12, 15)) < 0.6
    polygons = outlines_of(mask)
    np.testing.assert_array_equal(decode(polygons, mask.shape, "it"), mask)


def test_an_object_with_a_hole_is_cut_into_parts_without_one():
    polygons = outlines_of(RING)
    assert len(polygons) == 2
    # The shoelace formula: a square of 7 by 7 without its hole of 3 by 2.
    areas = [abs(np.dot(p[::2], np.roll(p[1::2], -1)) - np.dot(p[1::2], np.roll(p[::2], -1))) / 2 for p in polygons]
    assert sum(areas) == 7 * 7 - 3 * 2


def test_a_file_of_polygons_has_area_box_and_score_and_no_run_lengths(tmp_path):
    header = image_header(tmp_path / "a.png", RING.shape)
    written = CocoPolygons().write_objects(tmp_path / "a", [FoundObject.of(3, RING, 0.5)], header, {3: "ring"})
    (each,) = json.loads(written.read_text())["annotations"]
    assert (each["area"], each["bbox"], each["score"], each["category_id"]) == (43, [2.0, 1.0, 7.0, 7.0], 0.5, 3)
    assert all(isinstance(value, float) for polygon in each["segmentation"] for value in polygon)
    drawn = Drawn("ring", each["segmentation"], False, tmp_path / "a.coco.json")
    np.testing.assert_array_equal(drawn.mask(RING.shape), RING)

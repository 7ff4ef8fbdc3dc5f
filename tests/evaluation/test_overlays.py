from io import BytesIO

import numpy as np
import pytest
from PIL import Image

from medsam_tune.evaluation.overlays import OverlaySlice, draw_overlays, pick_slices

BLUE, ORANGE = (86, 180, 233), (230, 159, 0)


def square(first, last, size=36):
    mask = np.zeros((1, size, size), bool)
    mask[0, first:last, first:last] = True
    return mask


def panel(masks, prediction, **more):
    return OverlaySlice(np.full((*masks.shape[1:], 3), 40, np.uint8), masks, prediction, **more)


def drawn(slices):
    return np.asarray(Image.open(BytesIO(draw_overlays(slices))).convert("RGB")).astype(int)


def where(pixels, colour):
    """Rows and columns, as shares of the picture, where a colour was drawn."""
    found = np.argwhere(np.abs(pixels - np.array(colour)).max(axis=2) < 30)
    return found / np.array(pixels.shape[:2])


def test_contours_lie_on_the_edges_of_the_masks():
    pixels = drawn([panel(square(9, 18), square(18, 27))])
    truth, prediction = where(pixels, BLUE), where(pixels, ORANGE)
    np.testing.assert_allclose([truth.min(), truth.max()], [9 / 36, 18 / 36], atol=0.02)
    np.testing.assert_allclose([prediction.min(), prediction.max()], [18 / 36, 27 / 36], atol=0.02)


def test_tiny_slice_is_enlarged_and_object_at_the_border_is_closed():
    pixels = drawn([panel(square(0, 36), np.zeros((1, 36, 36), bool))])
    assert min(pixels.shape[:2]) > 250
    assert len(where(pixels, BLUE)) > 200
    assert len(where(pixels, ORANGE)) == 0


def test_panel_keeps_the_true_proportions():
    height, width, _ = drawn([panel(square(9, 18), square(9, 18), spacing_mm=(1.0, 2.0))]).shape
    assert width / height == pytest.approx(2, abs=0.02)


def test_slices_with_most_foreground_are_kept_in_order():
    empty = np.zeros((1, 36, 36), bool)
    slices = [panel(empty, square(0, side), title=str(side)) for side in (3, 9, 1, 7, 5)]
    assert [s.title for s in pick_slices(slices, count=3)] == ["9", "7", "5"]


def test_long_title_keeps_its_end_within_the_panel(monkeypatch):
    from matplotlib.axes import Axes

    titles = []
    monkeypatch.setattr(Axes, "set_title", lambda self, label, **more: titles.append(label))
    name = "a_very_long_name_of_a_hospital_and_its_patient_axial012"
    draw_overlays([panel(square(9, 18), square(9, 18), title=title) for title in (name, "axial013", name, name)])
    assert titles[0].startswith("...")
    assert titles[0].endswith("patient_axial012")
    assert len(titles[0]) < 32
    assert titles[1] == "axial013"


def test_no_slice_is_refused():
    with pytest.raises(ValueError, match="at least one slice"):
        draw_overlays([])

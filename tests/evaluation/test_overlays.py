from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.evaluation.overlays import OverlaySlice, draw_overlays, panel_image, panel_shapes, panel_step

BLUE, ORANGE = (86, 180, 233), (230, 159, 0)


def square(first, last, size=36):
    mask = np.zeros((1, size, size), bool)
    mask[0, first:last, first:last] = True
    return mask


def panel(masks, prediction, **more):
    truth, predicted = (panel_shapes(torch.from_numpy(rows), 1) for rows in (masks, prediction))
    return OverlaySlice(np.full((*masks.shape[1:], 3), 40, np.uint8), truth, predicted, **more)


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


@pytest.mark.parametrize(
    ("size", "step"), [((36, 36), 1), ((959, 959), 1), ((960, 700), 2), ((6000, 8000), 12), ((100, 14400), 10)]
)
def test_as_many_pixels_stay_as_a_panel_has(size, step):
    assert panel_step(*size) == step


def test_reduced_pixels_are_averages_and_keep_the_last_rows():
    image = torch.arange(15.0).view(1, 3, 5).expand(3, 3, 5)
    assert panel_image(image, 2)[..., 0].tolist() == [[3, 5, 6], [10, 12, 14]]  # (0+1+5+6)/4, (2+3+7+8)/4, (4+9)/2, ...
    assert panel_image(image, 1)[..., 1].tolist() == image[0].tolist()


def test_reduced_masks_keep_every_object_where_it_is():
    masks = torch.zeros(3, 25, 30, dtype=torch.bool)
    masks[0, 24, 29] = True
    masks[1, 3:12, 5] = True
    first, second = panel_shapes(masks, 4)
    assert (first.top, first.left, first.mask.tolist()) == (6, 7, [[True]])
    assert (second.top, second.left, second.mask.tolist()) == (0, 1, [[True]] * 3)


def test_a_large_slice_looks_as_the_small_one_it_is_an_enlargement_of():
    small = panel(square(9, 18), square(18, 27))
    large = [torch.from_numpy(np.kron(mask, np.ones((1, 40, 40), bool))) for mask in (square(9, 18), square(18, 27))]
    step = panel_step(1440, 1440)
    shapes = [panel_shapes(mask, step) for mask in large]
    pixels = drawn([OverlaySlice(panel_image(torch.full((3, 1440, 1440), 40.0), step), *shapes)])
    for colour in (BLUE, ORANGE):
        expected, found = where(drawn([small]), colour), where(pixels, colour)
        np.testing.assert_allclose([found.min(), found.max()], [expected.min(), expected.max()], atol=0.01)


def test_signs_of_a_formula_in_a_name_are_drawn_as_they_are():
    name = r"$\frac{1}$_a^b"
    assert draw_overlays([panel(square(9, 18), square(9, 18), title=name)])


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

from io import BytesIO

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.evaluation.overlays import OverlaySlice, draw_overlays, overlay_slice, pick_slices
from tests.factories import make_batch

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


def test_batch_row_comes_back_in_its_original_frame():
    batch = make_batch(sizes=((64, 48), (32, 20)))
    logits = torch.where(batch.original_masks[1], 1.0, -1.0)
    overlay = overlay_slice(batch, 1, logits, title="case")
    assert overlay.image.shape == (32, 20, 3)
    np.testing.assert_array_equal(overlay.prediction, batch.original_masks[1].numpy())
    np.testing.assert_allclose(overlay.image.mean(), batch.images[1, :, :64, :40].mean(), atol=3)
    exact = overlay_slice(batch, 0, logits.new_zeros(1, 64, 48))
    np.testing.assert_allclose(exact.image, batch.images[0, :, :64, :48].permute(1, 2, 0).numpy(), atol=0.51)


def test_no_slice_is_refused():
    with pytest.raises(ValueError, match="at least one slice"):
        draw_overlays([])

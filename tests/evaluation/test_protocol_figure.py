"""The figure of an evaluation, as large as a page shows it."""

from io import BytesIO

import pytest
from PIL import Image

from medsam_tune.evaluation.protocol_figure import Curve, Panel, draw_panels

PANEL = Panel("A box", "moved by", "Dice", [Curve("a network", 0, 0, [0.0, 0.1], [0.9, 0.8], [0.8, 0.7], [1.0, 0.9])])


@pytest.mark.parametrize(("count", "shape"), [(1, 1), (2, 2), (3, 2), (4, 2)])
def test_letters_are_ten_pixels_high_on_a_page_of_800(count, shape):
    """Letters of 8.5 points; a page of 800 px leaves 760 to a picture, which it makes narrower where that is wider."""
    width, height = Image.open(BytesIO(draw_panels([PANEL] * count))).size
    assert 8.5 * 120 / 72 * min(1, 760 / width) >= 10
    assert width == pytest.approx(528 * shape, abs=2)
    assert height < 1200


def test_no_panel_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        draw_panels([])

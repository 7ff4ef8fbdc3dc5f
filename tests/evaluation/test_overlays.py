import base64
import re
from io import BytesIO
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.evaluation.overlays import (
    OverlaySlice,
    draw_slice,
    joined_prompts,
    panel_image,
    panel_prompts,
    panel_shapes,
    panel_step,
)


def square(first, last, size=36):
    mask = np.zeros((1, size, size), bool)
    mask[0, first:last, first:last] = True
    return mask


def panel(true=None, tuned=None, *, size=36, **more):
    shapes = [[] if masks is None else panel_shapes(torch.from_numpy(masks), 1) for masks in (true, tuned)]
    return OverlaySlice(np.full((size, size, 3), 40, np.uint8), *shapes, **more)


def drawn(overlay, name="s"):
    return ElementTree.fromstring(draw_slice(overlay, name=name))


def line(svg, kind):
    """The corners (x, y) of every path of a kind, as lists."""
    (path,) = [each for each in svg.iter("path") if each.get("id", "").endswith(f"-{kind}")]
    return [
        [tuple(map(float, corner.split())) for corner in part.split("L")] for part in re.findall("M([^Z]*)Z", path.get("d"))
    ]


def test_lines_run_along_the_edges_of_the_pixels():
    svg = drawn(panel(square(9, 18), square(0, 36)))
    ((*truth,),) = line(svg, "truth")
    assert (min(truth), max(truth)) == ((9.0, 9.5), (18.0, 17.5))
    ((*whole,),) = line(svg, "tuned")
    assert {0.0, 36.0} <= {x for x, _ in whole}


def test_a_hole_has_a_line_of_its_own():
    ring = square(4, 20)
    ring[0, 10:14, 10:14] = False
    assert len(line(drawn(panel(ring)), "truth")) == 2


def test_every_kind_of_line_has_identifiers_of_its_own():
    shapes = panel_shapes(torch.from_numpy(square(9, 18)), 1)
    svg = drawn(OverlaySlice(np.zeros((36, 36, 3), np.uint8), shapes, shapes, shapes), name="s7")
    named = [each.get("id") for each in svg.iter("path") if each.get("id")]
    assert named == ["s7-truth", "s7-untuned", "s7-tuned"]
    assert [each.get("href") for each in svg.iter("use")] == [f"#{name}" for name in named for _ in range(2)]


def test_objects_of_a_few_pixels_get_thin_lines():
    def classes(mask):
        return [each.get("class") for each in drawn(panel(mask)).iter("use")]

    assert classes(square(9, 24)) == ["rim truth", "truth"]
    vessel = np.zeros((1, 480, 480), bool)
    vessel[0, 100:104, :] = True
    thin = drawn(panel(vessel, size=480))
    assert [each.get("class") for each in thin.iter("use")] == ["rim truth thin", "truth thin"]


def test_prompts_are_drawn_where_they_were_given():
    whole = panel_prompts(
        torch.tensor([[4.0, 6.0, 9.0, 11.0]]),
        torch.tensor([[[3.0, 5.0], [7.0, 1.0], [0.0, 0.0]]]),
        torch.tensor([[1, 0, -1]]),
    )
    prompts = joined_prompts([whole], 2)
    assert prompts.boxes == [(2.0, 3.0, 5.0, 6.0)]  # columns 4 to 9 are 6 pixels, of which two become one
    assert prompts.points == [(1.75, 2.75, 1), (3.75, 0.75, 0)]
    marks = [each for each in drawn(panel(prompts=prompts)).iter("path")]
    assert [each.get("class") for each in marks] == ["prompt", "rim click", "prompt click", "rim click off", "prompt click off"]
    assert marks[0].get("d") == "M2 3H5V6H2Z"
    assert panel_prompts(None, None, None).boxes == []


@pytest.mark.parametrize(
    ("size", "spacing", "wanted"),
    [((36, 36), (1.0, 2.0), (72.0, 36.0)), ((36, 36), (3.0, 1.0), (36.0, 108.0)), ((10, 100), (1.0, 1.0), (30.0, 10.0))],
)
def test_panel_keeps_the_true_proportions_within_three_to_one(size, spacing, wanted):
    svg = drawn(OverlaySlice(np.zeros((*size, 3), np.uint8), spacing_mm=spacing))
    width, height = map(float, svg.get("viewBox").split()[2:])
    assert width / height == pytest.approx(wanted[0] / wanted[1], rel=1e-3)


def test_image_is_stored_as_it_is_where_that_is_small():
    pixels = np.random.default_rng(0).integers(0, 256, (12, 10, 3), dtype=np.uint8)
    source = next(drawn(OverlaySlice(pixels)).iter("image")).get("href")
    kind, _, content = source.partition(";base64,")
    assert kind == "data:image/png"
    assert np.array_equal(np.asarray(Image.open(BytesIO(base64.b64decode(content)))), pixels)


def test_a_large_photograph_is_packed():
    rows, columns = np.mgrid[:300, :300]
    noise = np.random.default_rng(0).normal(0, 8, (300, 300, 3))
    pixels = np.clip(128 + 60 * np.sin(rows / 40)[..., None] + 30 * np.cos(columns / 30)[..., None] + noise, 0, 255)
    drawing = draw_slice(OverlaySlice(pixels.astype(np.uint8)), name="s")
    assert "data:image/jpeg" in drawing
    assert len(drawing) < 120_000


def test_the_same_slice_is_drawn_alike_twice():
    overlay = panel(square(9, 18), square(10, 20), title="a")
    assert draw_slice(overlay, name="s") == draw_slice(overlay, name="s")


def test_a_name_with_signs_of_markup_stays_a_name():
    assert drawn(panel(title='<b>"&')).get("aria-label") == '<b>"&'


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

import re

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import ImageFolder, NiftiVolumes, SegmentationDataModule
from medsam_tune.data.colours import ColourTable
from medsam_tune.errors import DataError, RecipeError

GREY = np.zeros((2, 3), np.uint8)
RED, BLUE, GREEN, BLACK, WHITE = (255, 0, 0), (0, 0, 255), (0, 255, 0), (0, 0, 0), (255, 255, 255)
TABLE = {"lumen": [255, 0, 0], "wall": [0, 0, 255]}
PIXELS = np.array([[RED, BLUE, BLACK], [BLUE, BLUE, BLACK]], np.uint8)


def opened(root, table=TABLE, *, target="per_label", **settings):
    source = ImageFolder(**settings)
    source.target = target
    source.use_colours(table)
    source.open(root)
    return source


@pytest.mark.parametrize("ending", ["png", "tif", "bmp"])
def test_each_colour_of_the_table_is_a_label(image_folder, ending):
    source = opened(image_folder({"a.png": GREY}, {f"a.{ending}": PIXELS}))
    assert source.label_names() == source.named_labels() == {1: "lumen", 2: "wall"}
    assert source[0].labels.tolist() == [1, 2]
    assert source[0].masks.dense().int().tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 1, 0]]]


def test_a_palette_image_shows_the_colours_of_its_palette(image_folder):
    mask = Image.fromarray(np.array([[5, 9, 0], [9, 9, 0]], np.uint8), mode="P")
    palette = [0] * 768
    palette[15:18], palette[27:30] = RED, BLUE
    mask.putpalette(palette)
    root = image_folder({"a.png": GREY}, {"a.png": mask})
    assert torch.equal(opened(root)[0].masks.dense(), opened(image_folder({"a.png": GREY}, {"a.png": PIXELS}))[0].masks.dense())


def test_transparent_pixels_are_background_and_alpha_changes_no_colour(image_folder):
    alpha = np.array([[40, 255, 0], [255, 0, 255]], np.uint8)
    rgba = np.concatenate([np.where(alpha[..., None] == 0, WHITE, PIXELS), alpha[..., None]], axis=-1).astype(np.uint8)
    shown = opened(image_folder({"a.png": GREY}, {"a.png": rgba}))[0]
    assert shown.masks.dense().int().tolist() == [[[1, 0, 0], [0, 0, 0]], [[0, 1, 0], [1, 0, 0]]]


def test_background_may_have_a_colour_and_black_may_be_a_label(image_folder):
    mask = np.where((PIXELS == 0).all(axis=-1, keepdims=True), WHITE, PIXELS).astype(np.uint8)
    mask[0, 0] = BLACK
    shown = opened(image_folder({"a.png": GREY}, {"a.png": mask}), {"background": WHITE, "wall": BLUE, "clot": BLACK})[0]
    assert shown.masks.dense().int().tolist() == [[[0, 1, 0], [1, 1, 0]], [[1, 0, 0], [0, 0, 0]]]


def test_a_colour_called_ignored_is_neither_object_nor_background(image_folder):
    source = opened(image_folder({"a.png": GREY}, {"a.png": PIXELS}), {"ignored": RED, "wall": BLUE})
    assert source.label_names() == {1: "wall"}
    assert source[0].ignored.int().tolist() == [[1, 0, 0], [0, 0, 0]]
    assert source[0].labels.tolist() == [1]


def test_labels_group_colours_by_name_and_may_leave_some_out(image_folder):
    root = image_folder({"a.png": GREY}, {"a.png": PIXELS})
    source = opened(root, labels={"vessel": ["wall", "lumen"], "inside": ["lumen"]})
    assert source.label_names() == {1: "vessel", 2: "inside"}
    assert source[0].masks.dense().flatten(1).sum(dim=1).tolist() == [4, 1]
    with pytest.raises(RecipeError, match=r"labels\.vessel: 'lumn' is no name of data\.colours, which has \['lumen', 'wall'\]"):
        opened(root, labels={"vessel": ["lumn"]})
    with pytest.raises(RecipeError, match=r"labels\.vessel: \['wall'\] are names, but neither"):
        ImageFolder(labels={"vessel": ["wall"]}).open(root)


def test_a_colour_that_is_not_in_the_table_is_listed_with_pixels_and_the_nearest(image_folder):
    mask = PIXELS.copy()
    mask[0, 1:], mask[1, 0] = (250, 0, 4), (0, 40, 10)
    root = image_folder({"a.png": GREY}, {"a.png": mask})
    expected = (
        "a.png: colours that are not in data.colours: [250, 0, 4] on 2 pixels (nearest: lumen [255, 0, 0]), "
        "[0, 40, 10] on 1 pixels (nearest: background [0, 0, 0]). Name them there"
    )
    with pytest.raises(DataError, match=re.escape(expected)):
        opened(root)[0]


def test_colours_mixed_by_smooth_edges_or_jpeg_are_explained(image_folder):
    smooth = np.zeros((2, 20, 3), np.uint8)
    smooth[..., 0] = np.arange(20) * 12
    root = image_folder({"a.png": np.zeros((2, 20), np.uint8)}, {"a.png": smooth})
    with pytest.raises(DataError, match=r"and 14 more\. So many come from JPEG or from smooth \(anti-aliased\) edges.*as PNG"):
        opened(root)[0]
    (root / "masks" / "a.png").unlink()
    Image.fromarray(np.repeat(PIXELS, 2, axis=1)[:, :3]).save(root / "masks" / "a.jpg")
    Image.fromarray(GREY).save(root / "images" / "a.png")
    with pytest.raises(DataError, match=r"a\.jpg: .*JPEG changes colours, and a mixed colour shows nothing"):
        opened(root)[0]


def test_a_colour_mask_without_a_table_names_its_colours(image_folder):
    source = ImageFolder()
    source.open(image_folder({"a.png": GREY}, {"a.png": PIXELS}))
    with pytest.raises(
        DataError, match=r"a\.png: is a colour image.*\[0, 0, 255\] on 3 pixels, \[0, 0, 0\] on 2 .*data\.colours: \{"
    ):
        source[0]


def test_pieces_of_a_colour_are_its_instances_and_keep_their_label(image_folder):
    mask = np.array([[RED, BLACK, RED], [BLACK, BLUE, BLACK]], np.uint8)
    apart = np.array([[RED, BLUE, RED], [BLACK, BLUE, BLACK]], np.uint8)
    source = opened(image_folder({"a.png": GREY, "b.png": GREY}, {"a.png": mask, "b.png": apart}), target="per_instance")
    # Both red pixels and the blue touch at corners, but one colour's pieces never join another's.
    assert [source[0].labels.tolist(), source[1].labels.tolist()] == [[1, 1, 2], [1, 1, 2]]
    assert source[1].object_ids.tolist() == [1, 2, 3]


def test_the_data_key_reaches_the_source_with_every_target(image_folder):
    root = str(image_folder({"a.png": GREY}, {"a.png": PIXELS}))
    for target in ("binary", "per_label", "per_class", "per_instance"):
        data = SegmentationDataModule(ImageFolder(), root, target=target, colours=TABLE)
        assert data.source.colours.labels == ("lumen", "wall")
        assert data.source.target == target


@pytest.mark.parametrize(
    ("table", "message"),
    [
        ({"a": [255, 0]}, r"data\.colours\.a: expected \[red, green, blue\]"),
        ({"a": [256, 0, 0]}, "from 0 to 255, got"),
        ({"a": [1, 2, 3], "b": [1, 2, 3]}, r"data\.colours\.b: \[1, 2, 3\] is a too"),
        ({"background": [255, 255, 255]}, "names no label"),
    ],
)
def test_a_table_that_cannot_be_is_refused(table, message):
    with pytest.raises(RecipeError, match=message):
        ColourTable(table)


def test_what_says_the_same_otherwise_is_refused():
    for source, key in (
        (ImageFolder(mask_threshold=3), "mask_threshold"),
        (ImageFolder(mask_pattern="^(.+)_(?P<label>a|b)$"), "mask_pattern"),
    ):
        with pytest.raises(RecipeError, match=rf"data\.colours: data\.source\.{key} says what a mask shows too"):
            source.use_colours(TABLE)
    with pytest.raises(RecipeError, match=r"data\.colours: NiftiVolumes reads numbers"):
        NiftiVolumes().use_colours(TABLE)
    with pytest.raises(RecipeError, match=r"data\.ignore_label: .*Call the colour `ignored`"):
        SegmentationDataModule(ImageFolder(), "DIR", ignore_label=255, colours=TABLE)

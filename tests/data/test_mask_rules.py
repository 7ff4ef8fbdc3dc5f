import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.facts import read_pair, thickest_axis
from medsam_tune.data.formats import RasterFormat
from medsam_tune.data.layouts.base import DataFile, Pair
from medsam_tune.data.mask_rules import mask_rule


@pytest.fixture
def facts(tmp_path):
    """Return a function that writes masks and reads their facts."""

    def read(*masks, suffix=".png"):
        found = []
        for number, values in enumerate(masks):
            image, mask = tmp_path / f"{number}.png", tmp_path / f"{number}_mask{suffix}"
            Image.fromarray(np.zeros(values.shape, np.uint8)).save(image)
            Image.fromarray(values).save(mask)
            pair = Pair(str(number), DataFile(image, image.stem), (DataFile(mask, mask.stem),))
            found.append(read_pair(pair, RasterFormat()))
        return found

    return read


def blocks(*values, side=40):
    """A mask with one 4 x 4 block a value."""
    mask = np.zeros((side, side), np.uint16 if max(values, default=0) > 255 else np.uint8)
    for place, value in enumerate(values):
        row, column = divmod(place, side // 5)
        mask[5 * row : 5 * row + 4, 5 * column : 5 * column + 4] = value
    return mask


def test_one_value_is_one_object_whatever_it_is(facts):
    assert mask_rule(facts(blocks(255), blocks())).kind == "one object"
    assert mask_rule(facts(blocks(1), blocks(255))).kind == "one object"


def test_values_that_return_in_every_mask_are_classes(facts):
    rule = mask_rule(facts(blocks(1, 2, 2), blocks(1, 1, 2), blocks(2)))
    assert (rule.kind, rule.labels) == ("classes", {"label_1": [1], "label_2": [2]})


def test_values_of_one_piece_each_that_are_many_are_instances(facts):
    assert mask_rule(facts(blocks(*range(1, 13)), blocks(*range(1, 10)))).kind == "instances"
    assert mask_rule(facts(blocks(*range(1000, 1040)))).kind == "instances"


def test_void_of_pascal_is_no_class(facts):
    rule = mask_rule(facts(blocks(1, 2, 255), blocks(2, 2, 255)))
    assert (rule.kind, rule.labels, rule.ignore_label) == ("classes", {"label_1": [1], "label_2": [2]}, 255)
    assert mask_rule(facts(blocks(1, 255), blocks(1, 255))).ignore_label == 255


def test_mask_stored_as_jpeg_is_thresholded(facts):
    rows, columns = np.mgrid[:64, :64]
    disc = (255 * ((rows - 30) ** 2 + (columns - 33) ** 2 < 300)).astype(np.uint8)
    assert mask_rule(facts(disc, disc.T.copy(), suffix=".jpg")).kind == "lossy"


def test_names_of_the_folder_count(facts):
    rule = mask_rule(facts(blocks(1, 2)), named={"liver": [1], "tumour": [2]}, ignore_label=9)
    assert (rule.labels, rule.ignore_label) == ({"liver": [1], "tumour": [2]}, 9)


def test_objects_are_measured_in_pixels(facts):
    (fact,) = facts(blocks(1, 1))
    # A 4 x 4 block holds a disc of radius 2 (distance of its middle pixels from the outside): 2 * 2 - 1.
    assert [(each.area, each.thickness) for each in fact.objects] == [(16, 3.0), (16, 3.0)]
    assert (fact.counts, fact.pieces, fact.slice_size, fact.n_slices) == ({1: 32}, {1: 2}, (40, 40), 1)


def test_slices_are_cut_across_the_longest_voxels():
    assert thickest_axis((3.0, 0.5, 0.5)) == "sagittal"
    assert thickest_axis((1.0, 1.0, 1.0)) == "axial"

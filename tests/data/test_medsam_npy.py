"""MedSAM's npy folders: values, cases, labels, and files that must be refused."""

import numpy as np
import pytest
import torch

from medsam_tune.data import MedsamNpy
from medsam_tune.errors import DataError, RecipeError

LEVELS = np.arange(48 * 3, dtype=np.uint8).reshape(6, 8, 3)
IDS = np.zeros((6, 8), np.uint8)
IDS[1:3, 2:5], IDS[4:, 6:] = 1, 5


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes ``imgs`` and ``gts`` from arrays by name."""

    def write(images, masks):
        for name, arrays in (("imgs", images), ("gts", masks)):
            (tmp_path / name).mkdir(exist_ok=True)
            for stem, array in arrays.items():
                np.save(tmp_path / name / f"{stem}.npy", array)
        return tmp_path

    return write


def opened(root, **settings):
    source = MedsamNpy(**settings)
    source.open(root)
    return source


def test_float_image_equals_its_8_bit_version(folder):
    images = {"CT_a-000": LEVELS, "CT_a-001": LEVELS.astype(np.float64) / 255}
    source = opened(folder(images, dict.fromkeys(images, IDS)))
    assert torch.equal(source[0].image, torch.from_numpy(LEVELS).permute(2, 0, 1).float())
    assert torch.allclose(source[1].image, source[0].image, atol=1e-4)


def test_every_label_is_a_row(folder):
    sample = opened(folder({"a": LEVELS}, {"a": IDS}))[0]
    assert sample.labels.tolist() == [1, 5]
    assert torch.equal(sample.masks.dense(), torch.from_numpy(np.stack([IDS == 1, IDS == 5])))


def test_slice_without_label_is_an_image_without_objects(folder):
    sample = opened(folder({"a": LEVELS}, {"a": np.zeros_like(IDS)}))[0]
    assert sample.masks.shape == (0, 6, 8)


def test_slices_of_one_case_share_it(folder):
    images = dict.fromkeys(("CT_a-000", "CT_a-012", "CT_b-000", "photo"), LEVELS)
    assert opened(folder(images, dict.fromkeys(images, IDS))).case_ids() == ("CT_a", "CT_a", "CT_b", "photo")


def test_named_labels_group_ids(folder):
    source = opened(folder({"a": LEVELS}, {"a": IDS}), labels={"organ": [1, 5], "tumour": [5]})
    assert source.label_names() == {1: "organ", 2: "tumour"}
    assert source[0].masks.dense().sum(dim=(1, 2)).tolist() == [10, 4]


def test_label_names_come_from_the_masks_without_a_list(folder):
    assert opened(folder({"a": LEVELS}, {"a": IDS})).label_names() == {1: "label 1", 5: "label 5"}


def test_grey_image_becomes_three_channels(folder):
    sample = opened(folder({"a": LEVELS[..., 0]}, {"a": IDS}))[0]
    assert torch.equal(sample.image, torch.from_numpy(LEVELS[..., 0]).float().expand(3, 6, 8))


@pytest.mark.parametrize(
    ("image", "text"),
    [
        # Casting to uint8, as MedSAM's inference does, would wrap this one.
        (LEVELS.astype(np.uint16) * 200, "stores uint16, expected uint8 or floating point"),
        (LEVELS.astype(np.float32), "expected 0..1 for float32"),
        (np.full((6, 8), np.nan), "48 of 48 values are NaN or infinite"),
    ],
)
def test_image_on_another_scale_is_refused(folder, image, text):
    with pytest.raises(DataError, match=text):
        opened(folder({"a": image}, {"a": IDS}))[0]


def test_volume_is_refused_on_opening(folder):
    with pytest.raises(DataError, match="Save each slice as a file of its own"):
        opened(folder({"a": np.zeros((4, 6, 8), np.uint8)}, {"a": IDS}))


def test_mask_of_another_size_is_refused_on_opening(folder):
    with pytest.raises(DataError, match=r"gts/a.npy: mask shape \(5, 8\) differs from image shape \(6, 8\)"):
        opened(folder({"a": LEVELS}, {"a": IDS[:5]}))


@pytest.mark.parametrize("values", [IDS - 0.5, IDS + np.nan, IDS.astype(np.int16) - 1])
def test_label_ids_that_are_no_ids_are_refused(folder, values):
    with pytest.raises(DataError, match="no whole numbers from 0 to 2147483647"):
        opened(folder({"a": LEVELS}, {"a": values}))[0]


def test_pickled_array_is_refused(folder):
    root = folder({"a": np.array([{}], dtype=object)}, {"a": IDS})
    with pytest.raises(DataError, match=r"a.npy: cannot be read as a plain array"):
        opened(root)


def test_missing_mask_is_named(folder):
    with pytest.raises(DataError, match=r"1 images without a mask: b\. .*image 'imgs/a.npy' needs mask 'gts/a.npy'"):
        opened(folder({"a": LEVELS, "b": LEVELS}, {"a": IDS}))


def test_images_alone_are_enough_for_prediction(folder):
    source = MedsamNpy()
    source.open(folder({"a": LEVELS}, {}), require_masks=False)
    assert source[0].masks.shape == (0, 6, 8)


def test_case_pattern_without_a_group_is_refused():
    with pytest.raises(RecipeError, match="Put the case in brackets"):
        MedsamNpy(case_pattern="CT")

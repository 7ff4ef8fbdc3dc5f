from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import ImageFolder, Intensity
from medsam_tune.errors import DataError, RecipeError

GREY = np.arange(48, dtype=np.uint8).reshape(6, 8)
MASK = np.where(GREY % 8 < 3, 255, 0).astype(np.uint8)


def opened(root, **settings):
    source = ImageFolder(**settings)
    source.open(root)
    return source


def test_image_and_mask_of_one_name_become_a_sample(image_folder):
    source = opened(image_folder({"b.bmp": GREY, "a.tif": GREY + 9}, {"b.png": MASK, "a.bmp": MASK}))
    assert source.image_ids() == ("a", "b")
    sample = source[1]
    assert torch.equal(sample.image, torch.from_numpy(GREY).float().expand(3, 6, 8))
    assert torch.equal(sample.masks.dense()[0], torch.from_numpy(MASK > 0))
    assert (sample.labels.tolist(), sample.case_id, sample.index) == ([1], "b", 1)


def test_colour_channels_keep_their_order(image_folder):
    colour = np.stack([GREY, GREY + 50, GREY + 100], axis=-1)
    sample = opened(image_folder({"a.png": colour}, {"a.png": MASK}))[0]
    assert torch.equal(sample.image, torch.from_numpy(colour).permute(2, 0, 1).float())


def test_16_bit_image_equals_its_scaled_8_bit_version_under_full_range(image_folder):
    root = image_folder({"deep.png": GREY.astype(np.uint16) * 257, "flat.png": GREY}, {"deep.png": MASK, "flat.png": MASK})
    source = opened(root, intensity=Intensity("full_range"))
    assert torch.allclose(source[0].image, source[1].image, atol=1e-4)


def test_16_bit_image_is_spread_between_its_percentiles_by_default(image_folder):
    values = np.arange(1001, dtype=np.uint16).reshape(7, 143) * 10 + 5000
    image = opened(image_folder({"a.png": values}, {"a.png": np.zeros((7, 143), np.uint8)}))[0].image
    # The 0.5 and 99.5 percentiles of 5000, 5010, ..., 15000 are 5050 and 14950.
    assert image[0, 0, 5] == 0
    assert image[0].flatten()[995] == 255
    assert image[0].flatten()[500] == pytest.approx(127.5)


def test_empty_mask_gives_no_object(image_folder):
    sample = opened(image_folder({"a.png": GREY}, {"a.png": np.zeros_like(GREY)}))[0]
    assert sample.masks.shape == (0, 6, 8)


def test_labels_split_a_mask_into_named_rows(image_folder):
    values = np.array([[0, 1, 2], [3, 2, 0]], np.uint8)
    source = opened(image_folder({"a.png": values}, {"a.png": values}), labels={"wall": [1, 3], "lumen": [2], "clot": [9]})
    sample = source[0]
    assert source.label_names() == {1: "wall", 2: "lumen", 3: "clot"}
    assert sample.labels.tolist() == [1, 2]
    assert sample.masks.dense().int().tolist() == [[[0, 1, 0], [1, 0, 0]], [[0, 0, 1], [0, 1, 0]]]


def test_mask_value_outside_the_labels_is_refused_with_file_and_values(image_folder):
    root = image_folder({"a.png": GREY}, {"a.png": np.where(MASK > 0, 4, 1).astype(np.uint8)})
    with pytest.raises(DataError, match=r"a\.png: mask values \[4\] are in no group .*Name them there"):
        opened(root, labels={"wall": [1]})[0]


def test_mask_with_jpeg_artefacts_is_refused_and_told_to_threshold(image_folder):
    lossy = MASK.copy()
    lossy[0, :2] = [3, 254]
    root = image_folder({"a.png": GREY}, {"a.png": lossy})
    with pytest.raises(DataError, match=r"a\.png: mask holds the values \[0, 3, 254, 255\].*mask_threshold: 127"):
        opened(root)[0]
    thresholded = opened(root, mask_threshold=127)[0].masks.dense()[0]
    assert torch.equal(thresholded, torch.from_numpy(lossy > 127))


def test_names_that_do_not_pair_are_counted_and_listed(image_folder):
    images = {f"case_{k}.png": GREY for k in range(8)}
    root = image_folder(images, {"case_7.png": MASK, "other.png": MASK})
    with pytest.raises(
        DataError,
        match=r"8 images and 2 masks do not pair.*7 images without a mask: case_0, .*case_4 and 2 more; "
        r"1 masks without an image: other\..*needs mask 'a\.png' \(data\.source\.mask_suffix",
    ):
        opened(root)


def test_masks_may_lie_beside_the_images_with_a_suffix(image_folder):
    root = image_folder({"a.png": GREY, "a_mask.png": MASK}, {})
    sample = opened(root, masks="images", mask_suffix="_mask")[0]
    assert sample.image_id == "a"
    assert torch.equal(sample.masks.dense()[0], torch.from_numpy(MASK > 0))


def test_mask_without_the_suffix_is_refused(image_folder):
    root = image_folder({"a.png": GREY}, {"a.png": MASK})
    with pytest.raises(DataError, match=r"a\.png: mask name does not end in '_mask'"):
        opened(root, mask_suffix="_mask")


def test_two_files_of_one_name_are_refused(image_folder):
    root = image_folder({"a.png": GREY, "a.tif": GREY}, {"a.png": MASK})
    with pytest.raises(DataError, match=r"a\.tif: has the same name 'a' as .*a\.png"):
        opened(root)


def test_mask_of_another_size_is_refused_when_opening_with_both_sizes(image_folder):
    root = image_folder({"a.png": GREY}, {"a.png": MASK[:, :5]})
    with pytest.raises(DataError, match=r"a\.png: mask is 6 x 5 \(H x W\), its image is 6 x 8"):
        opened(root)


def test_sub_folders_and_a_pattern_make_cases(image_folder):
    names = ("p1/s1.png", "p1/s2.png", "p2/s1.png")
    root = image_folder(dict.fromkeys(names, GREY), dict.fromkeys(names, MASK))
    source = opened(root, case_pattern=r"^([^/]+)/")
    assert source.image_ids() == ("p1/s1", "p1/s2", "p2/s1")
    assert source.case_ids() == ("p1", "p1", "p2")


def test_name_without_a_case_is_refused_with_the_file(image_folder):
    root = image_folder({"scan7.png": GREY}, {"scan7.png": MASK})
    with pytest.raises(DataError, match=r"scan7\.png: 'scan7' gives no case under data\.source\.case_pattern"):
        opened(root, case_pattern=r"^(.+)_slice_")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"case_pattern": "^abc"}, "has no group"),
        ({"case_pattern": "(["}, "is no regular expression"),
        ({"masks": "images"}, "Set data.source.mask_suffix"),
        ({"labels": {"a": [1]}, "mask_threshold": 3}, "data.source.mask_threshold"),
        ({"labels": {"a": [0, 1]}}, "0 is background"),
        ({"labels": {"a": []}}, "data.source.labels.a"),
    ],
)
def test_settings_that_cannot_be_are_refused_before_any_file_is_read(settings, message):
    with pytest.raises(RecipeError, match=message):
        ImageFolder(**settings)


def test_missing_folder_names_the_folders_that_are_there(image_folder):
    root = image_folder({"a.png": GREY}, {"a.png": MASK})
    with pytest.raises(DataError, match=r"labels: no such folder; .* holds the folders \['images', 'masks'\]"):
        opened(root, masks="labels")
    with pytest.raises(DataError, match=r"nowhere: no such folder\. Set data\.root"):
        opened(Path(root / "nowhere"))


def test_folder_without_images_is_refused(image_folder):
    root = image_folder({}, {})
    (root / "images" / "notes.txt").write_text("no image")
    with pytest.raises(DataError, match="no image found"):
        opened(root)


def test_prediction_needs_no_masks_but_uses_those_that_are_there(image_folder):
    root = image_folder({"a.png": GREY, "b.png": GREY}, {"b.png": MASK})
    source = ImageFolder()
    source.open(root, require_masks=False)
    assert [len(source[index].labels) for index in range(2)] == [0, 1]


def test_hidden_files_are_left_alone(image_folder):
    root = image_folder({"a.png": GREY}, {"a.png": MASK})
    (root / "images" / "._a.png").write_bytes(b"resource fork")
    assert opened(root).image_ids() == ("a",)


def test_bilevel_mask_is_foreground_where_set(image_folder):
    sample = opened(image_folder({"a.png": GREY}, {"a.png": Image.fromarray(MASK > 0)}))[0]
    assert torch.equal(sample.masks.dense()[0], torch.from_numpy(MASK > 0))

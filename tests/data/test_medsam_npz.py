"""MedSAM's npz files: images and volumes, spacing, boxes, and files that must be refused."""

import numpy as np
import pytest
import torch

from medsam_tune.data import Intensity, MedsamNpz, SliceRule
from medsam_tune.data.base import VoxelSize
from medsam_tune.errors import DataError

VOLUME = np.arange(4 * 6 * 8, dtype=np.uint8).reshape(4, 6, 8)
IDS = np.zeros((4, 6, 8), np.uint8)
IDS[1:3, 1:4, 2:5], IDS[3, 5, 7] = 2, 3
COLOUR = np.arange(6 * 8 * 3, dtype=np.uint8).reshape(6, 8, 3)


@pytest.fixture
def folder(tmp_path):
    """Return a function that writes one ``.npz`` file from its arrays."""

    def write(name="CT_a", **arrays):
        np.savez_compressed(tmp_path / f"{name}.npz", **arrays)
        return tmp_path

    return write


def opened(root, require_masks=True, **settings):
    source = MedsamNpz(**settings)
    source.open(root, require_masks=require_masks)
    return source


def test_volume_gives_one_item_a_slice(folder):
    source = opened(folder(imgs=VOLUME, gts=IDS, spacing=(0.5, 0.7, 3.0)))
    assert source.image_ids() == tuple(f"CT_a_axial{position:03d}" for position in range(4))
    assert set(source.case_ids()) == {"CT_a"}
    sample = source[3]
    assert torch.equal(sample.image, torch.from_numpy(VOLUME[3]).float().expand(3, 6, 8))
    assert sample.labels.tolist() == [3]
    # SimpleITK's order is (x, y, z); a slice's rows run along y.
    assert sample.spacing_mm == (0.7, 0.5)
    assert source[0].masks.shape == (0, 6, 8)


def test_colour_image_is_one_item(folder):
    source = opened(folder("Fundus_1", imgs=COLOUR, gts=IDS[1], spacing=(1.0, 2.0, 3.0)))
    assert source.image_ids() == ("Fundus_1",)
    assert torch.equal(source[0].image, torch.from_numpy(COLOUR).permute(2, 0, 1).float())
    assert source[0].spacing_mm == (1.0, 1.0)


def test_slices_are_chosen_for_each_purpose(folder):
    source = opened(folder(imgs=VOLUME, gts=IDS), slices=SliceRule(count=2), train_slices=SliceRule(count=1))
    everything = range(len(source))
    assert source.select(everything, "evaluate") == [1, 3]
    assert source.select(everything, "train") == [2]
    assert source.select(everything, "predict") == [0, 1, 2, 3]


def test_16_bit_volume_equals_its_scaled_8_bit_version_under_a_window(folder):
    root = folder("deep", imgs=VOLUME.astype(np.int16) * 10 - 1000, gts=IDS)
    folder("flat", imgs=VOLUME, gts=IDS)
    deep = opened(root, intensity=Intensity("window", window=(-1000, 1550)))
    plain = opened(root)
    assert torch.allclose(deep[2].image, plain[6].image, atol=1e-4)


def test_other_types_take_percentiles_of_the_whole_volume(folder):
    levels = VOLUME.astype(np.float32) / 1000
    source = opened(folder(imgs=levels, gts=IDS))
    low, high = np.percentile(levels, (0.5, 99.5))
    expected = np.clip((levels[1] - low) / (high - low), 0, 1) * 255
    assert torch.equal(source[1].image[0], torch.from_numpy(np.rint(expected)).float())


def test_constant_volume_becomes_zero_and_no_nan(folder):
    assert not opened(folder(imgs=np.full((2, 6, 8), 7.0), gts=IDS[:2]))[0].image.any()


def test_label_names_come_from_the_masks_without_a_list(folder):
    assert opened(folder(imgs=VOLUME, gts=IDS)).label_names() == {2: "label 2", 3: "label 3"}


def test_boxes_of_a_volume_are_those_whose_slices_hold_the_item(folder):
    boxes = np.array([[2, 1, 1, 4, 3, 2], [7, 5, 3, 7, 5, 3]])
    source = opened(folder(imgs=VOLUME, boxes=boxes), require_masks=False)
    assert [source.boxes(index).tolist() for index in range(4)] == [[], [[2, 1, 4, 3]], [[2, 1, 4, 3]], [[7, 5, 7, 5]]]


def test_boxes_of_an_image_are_as_stored(folder):
    source = opened(folder(imgs=COLOUR, boxes=np.array([[0, 0, 8, 6], [3, 3, 3, 3]])), require_masks=False)
    assert source.boxes(0).tolist() == [[0, 0, 8, 6], [3, 3, 3, 3]]


@pytest.mark.parametrize("box", [[5, 1, 4, 3], [-1, 0, 3, 3], [0, 0, 9, 3], [0, np.nan, 3, 3]])
def test_box_outside_the_image_or_turned_over_is_refused(folder, box):
    source = opened(folder(imgs=COLOUR, boxes=np.array([box])), require_masks=False)
    with pytest.raises(DataError, match=r"lies outside the image|ends before it begins"):
        source.boxes(0)


def test_boxes_of_another_shape_are_refused(folder):
    source = opened(folder(imgs=VOLUME, boxes=np.zeros((2, 4))), require_masks=False)
    with pytest.raises(DataError, match=r"boxes has shape \(2, 4\), expected \(K, 6\)"):
        source.boxes(0)


@pytest.mark.parametrize(
    ("arrays", "text"),
    [
        ({"gts": IDS}, r"has no imgs; its keys are \['gts'\]"),
        ({"imgs": VOLUME}, "holds no masks"),
        ({"img": VOLUME}, r"has no imgs; its keys are \['img'\]"),
        ({"imgs": VOLUME, "gts": IDS[:3]}, r"gts has shape \(3, 6, 8\), expected \(4, 6, 8\)"),
        ({"imgs": np.zeros((2, 4, 6, 8), np.uint8), "gts": IDS}, r"expected \(H, W\), \(H, W, 3\) or \(D, H, W\)"),
        ({"imgs": VOLUME, "gts": IDS, "spacing": (1.0, 0.0, 1.0)}, "expected three sizes above 0"),
        ({"imgs": VOLUME, "gts": IDS, "spacing": (1.0, 1.0)}, "expected three sizes above 0"),
    ],
)
def test_file_that_does_not_fit_is_refused_on_opening(folder, arrays, text):
    with pytest.raises(DataError, match=text):
        opened(folder(**arrays))


def test_pickled_array_is_refused_and_never_run(folder):
    source = opened(folder(imgs=np.full((4, 6, 8), None), gts=IDS))
    with pytest.raises(DataError, match="imgs cannot be read as a plain array"):
        source[0]


def test_nan_is_refused(folder):
    values = VOLUME.astype(np.float32)
    values[0, 0, 0] = np.nan
    with pytest.raises(DataError, match="1 of 192 values are NaN or infinite"):
        opened(folder(imgs=values, gts=IDS))[3]


def test_truncated_file_is_refused(folder):
    path = folder(imgs=VOLUME, gts=IDS) / "CT_a.npz"
    path.write_bytes(path.read_bytes()[:40])
    with pytest.raises(DataError, match=r"cannot be read as \.npz"):
        opened(path.parent)


def test_folder_without_files_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"holds no \.npz file"):
        opened(tmp_path)


def test_a_voxel_without_a_stated_size_has_none(folder):
    assert opened(folder("a", imgs=VOLUME, gts=IDS)).voxel_size(0) is None
    assert opened(folder("a", imgs=VOLUME, gts=IDS, spacing=(0.5, 0.7, 3.0))).voxel_size(0) == VoxelSize(0.7, 0.5, 3.0)

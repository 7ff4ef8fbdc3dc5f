"""Instances are read as the files number them, in every format."""

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import ImageFolder, MedsamNpy, MedsamNpz, NiftiVolumes, SegmentationDataModule, VolumeSource, apply_target
from medsam_tune.data.formats import RasterFormat
from medsam_tune.errors import DataError
from medsam_tune.geometry import InputRule

# Two touching instances, one of them in two pieces, with numbers that 8 bits do not hold.
NUMBERS = np.array([[700, 700, 70000, 70000], [0, 0, 0, 0], [700, 0, 0, 0]], np.int32)
ROWS = np.stack([NUMBERS == 700, NUMBERS == 70000])


def instances_of(source, root, index=0, **settings):
    source.target = "per_instance"
    source.ignore_label = settings.get("ignore_label")
    source.open(root)
    sample = source[index]
    assert source.label_names() == {1: "object"}
    return apply_target(sample, "per_instance")


@pytest.mark.parametrize(
    ("ending", "values"),
    [
        ("png", np.where(NUMBERS == 70000, 65535, NUMBERS).astype(np.uint16)),
        ("tif", np.where(NUMBERS == 70000, 65535, NUMBERS).astype(np.uint16)),
        ("tif", NUMBERS),
        ("png", (NUMBERS // 350).astype(np.uint8)),
    ],
)
@pytest.mark.parametrize("kind", [ImageFolder, lambda: VolumeSource(RasterFormat(), masks="masks")])
def test_image_files_of_8_16_and_32_bits_number_instances(image_folder, kind, ending, values):
    sample = instances_of(kind(), image_folder({"a.png": np.zeros((3, 4), np.uint8)}, {f"a.{ending}": values}))
    assert torch.equal(sample.masks.dense(), torch.from_numpy(ROWS))
    assert sample.labels.tolist() == [1, 1]


def test_the_instances_of_a_volume_are_its_values_on_every_slice(volumes):
    volume = np.zeros((4, 3, 2), np.int32)
    volume[:, :, 0] = NUMBERS.T
    volume[:, :, 1] = np.where(NUMBERS.T == 700, 700, 0)
    volumes("images", "a", np.random.default_rng(0).integers(0, 99, (4, 3, 2)).astype(np.int16))
    root = volumes("labels", "a", volume)
    both = instances_of(NiftiVolumes(), root, 0)
    assert sorted(both.object_ids.tolist()) == [700, 70000]
    alone = instances_of(NiftiVolumes(), root, 1)
    # One value on this slice, but the volume numbers instances: its two pieces stay one.
    assert (alone.object_ids.tolist(), int(alone.masks.dense().sum())) == ([700], 3)


def test_medsam_files_number_instances(tmp_path):
    (tmp_path / "npz").mkdir()
    np.savez(tmp_path / "npz" / "a.npz", imgs=np.zeros((3, 4), np.uint8), gts=NUMBERS)
    assert torch.equal(instances_of(MedsamNpz(), tmp_path / "npz").masks.dense(), torch.from_numpy(ROWS))
    for folder, values in (("imgs", np.zeros((3, 4), np.uint8)), ("gts", NUMBERS)):
        (tmp_path / folder).mkdir()
        np.save(tmp_path / folder / "a.npy", values)
    assert torch.equal(instances_of(MedsamNpy(), tmp_path).masks.dense(), torch.from_numpy(ROWS))


def test_the_pieces_of_a_mask_with_one_value_are_its_instances(image_folder):
    root = image_folder({"a.png": np.zeros((3, 4), np.uint8)}, {"a.png": ((NUMBERS == 700) * 255).astype(np.uint8)})
    sample = instances_of(ImageFolder(), root)
    assert sample.object_ids.tolist() == [1, 2]
    assert sample.masks.dense().flatten(1).sum(dim=1).tolist() == [2, 1]


def test_values_that_are_named_are_classes_and_their_pieces_the_instances(image_folder):
    values = np.array([[1, 0, 1, 2], [0, 0, 0, 2]], np.uint8)
    source = ImageFolder(labels={"a": [1], "b": [2]})
    source.target = "per_instance"
    source.open(image_folder({"a.png": np.zeros((2, 4), np.uint8)}, {"a.png": values}))
    assert source[0].labels.tolist() == [1, 1, 2]


def test_a_threshold_makes_pieces(image_folder):
    root = image_folder({"a.png": np.zeros((3, 4), np.uint8)}, {"a.png": (NUMBERS // 350).astype(np.uint8)})
    sample = instances_of(ImageFolder(mask_threshold=0), root)
    # 700 and 70000 touch.
    assert sample.masks.dense().flatten(1).sum(dim=1).tolist() == [4, 1]


def test_unannotated_pixels_are_no_instance(image_folder):
    values = np.array([[255, 3, 3], [255, 8, 0]], np.uint8)
    root = image_folder({"a.png": np.zeros((2, 3), np.uint8)}, {"a.png": values})
    sample = instances_of(ImageFolder(), root, ignore_label=255)
    assert sample.object_ids.tolist() == [3, 8]
    assert sample.ignored.tolist() == [[True, False, False], [True, False, False]]


def test_numbers_of_a_jpeg_are_refused(image_folder):
    smooth = np.tile(np.arange(16, dtype=np.uint8) * 16, (16, 1))
    root = image_folder({"a.png": smooth}, {"a.jpg": smooth})
    with pytest.raises(DataError, match=r"a\.jpg: JPEG changes values, so its numbers are no instances.*mask_threshold: 127"):
        instances_of(ImageFolder(), root)


def test_every_instance_is_a_row_of_a_batch_and_leaves_with_its_pixels(image_folder):
    blank = np.zeros((3, 4), np.uint8)
    root = image_folder({f"{k}.png": blank for k in range(5)}, {f"{k}.tif": NUMBERS for k in range(5)})
    data = SegmentationDataModule(ImageFolder(), str(root), target="per_instance", max_objects=1, cache_embeddings=False)
    data.open(InputRule(side=16))
    assert data.label_names == {1: "object"}
    assert len(data.dataset("test")[0].sample.labels) == 2
    limited = data.dataset("train")[0].sample
    assert len(limited.labels) == len(limited.object_ids) == 1
    moved = limited.rows(torch.tensor([0]))
    gone = apply_target(moved.__class__(**{**vars(moved), "masks": torch.zeros_like(moved.masks.dense())}), "per_instance")
    assert len(gone.object_ids) == 0


def test_touching_instances_stay_apart(tmp_path):
    rng = np.random.default_rng(0)
    numbers = np.zeros((60, 60), np.uint16)
    for number, (row, column) in enumerate(rng.integers(0, 50, (40, 2)), start=1):
        numbers[row : row + 8, column : column + 8] = number
    for folder, values in (("images", np.zeros((60, 60), np.uint8)), ("masks", numbers)):
        (tmp_path / folder).mkdir()
        Image.fromarray(values).save(tmp_path / folder / "a.png")
    sample = instances_of(ImageFolder(), tmp_path)
    assert len(sample.labels) == len(np.unique(numbers)) - 1
    pieces = instances_of(ImageFolder(mask_threshold=0), tmp_path)
    assert len(pieces.labels) < len(sample.labels)

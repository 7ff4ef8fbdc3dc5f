"""A prepared folder shows the same images, masks and cases through ImageFolder, or does not appear at all."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from medsam_tune.data import ImageFolder, NiftiVolumes, load_splits, make_splits
from medsam_tune.data.base import VoxelSize
from medsam_tune.data.prepare import CASE_PATTERN, CT_WINDOWS, prepare_folder
from medsam_tune.errors import DataError


def _volumes(volumes, seed=0):
    rng = np.random.default_rng(seed)
    for case in "abcd":
        values = rng.integers(-300, 500, (6, 5, 4)).astype(np.int16)
        masks = np.zeros((6, 5, 4), np.uint8)
        masks[1:4, 1:3, 1], masks[4, 4, 2] = 1, 3
        volumes("images", case, values, np.diag([0.5, 0.7, 3.0, 1.0]))
        root = volumes("labels", case, masks, np.diag([0.5, 0.7, 3.0, 1.0]))
    return root


def _prepared(source, root, **settings):
    source.open(root)
    splits = make_splits([case.replace("/", "__") for case in source.case_ids()], val_fraction=0.25, test_fraction=0.25)
    return prepare_folder(source, root / "prepared", splits=splits, **settings)


def test_prepared_folder_shows_what_the_source_shows(volumes):
    root = _volumes(volumes)
    source = NiftiVolumes(window=CT_WINDOWS["soft_tissue"])
    done = _prepared(source, root)
    again = ImageFolder(labels={name: [value] for value, name in done.labels.items()}, case_pattern=CASE_PATTERN)
    again.open(done.folder)
    assert (done.images, done.cases, done.empty) == (16, 4, 8)
    assert again.case_ids() == source.case_ids()
    numbers = {position + 1: value for position, value in enumerate(done.labels)}
    for index in range(len(source)):
        expected, found = source[index], again[index]
        assert torch.equal(found.image, expected.image)
        assert torch.equal(found.masks.dense(), expected.masks.dense())
        assert [numbers[int(label)] for label in found.labels] == expected.labels.tolist()


def test_one_stored_value_gives_one_grey_level_in_every_case(volumes):
    # MedSAM's script stretches the values left after clipping, so HU 40 differs from case to case.
    for case, highest in (("a", 100), ("b", 240), ("c", 60)):
        values = np.full((4, 4, 2), 40, np.int16)
        values[0, 0] = highest
        volumes("images", case, values)
        root = volumes("labels", case, np.ones((4, 4, 2), np.uint8))
    done = _prepared(NiftiVolumes(window=CT_WINDOWS["soft_tissue"]), root)
    source = ImageFolder(case_pattern=CASE_PATTERN)
    source.open(done.folder)
    assert {source[index].image[0, 0, 0].item() for index in range(len(source))} == {128.0}


def test_windows_are_the_papers_width_and_level():
    limits = {name: (high - low, (high + low) / 2) for name, (low, high) in CT_WINDOWS.items()}
    assert limits == {"soft_tissue": (400, 40), "lung": (1500, -160), "brain": (80, 40)}


def test_record_holds_window_spacing_and_labels(volumes):
    done = _prepared(NiftiVolumes(window=(-160.0, 240.0)), _volumes(volumes))
    record = json.loads((done.folder / "prepared.json").read_text())
    assert record["source"]["intensity"]["window"] == [-160.0, 240.0]
    assert record["labels"] == {"label 1": [1], "label 3": [3]}
    assert record["spacing_mm"]["a/a_axial001"] == pytest.approx([0.7, 0.5])


def test_splits_fit_the_prepared_folder(volumes):
    done = _prepared(NiftiVolumes(), _volumes(volumes))
    source = ImageFolder(labels={"all": [1, 3]}, case_pattern=CASE_PATTERN)
    source.open(done.folder)
    splits = load_splits(done.folder / "splits.json", source.case_ids())
    assert (len(splits.train), len(splits.val), len(splits.test)) == (2, 1, 1)


def test_images_without_an_object_are_left_out_on_request(volumes):
    done = _prepared(NiftiVolumes(), _volumes(volumes), keep_empty=False)
    assert (done.images, done.empty) == (8, 8)
    assert len(list(done.folder.glob("images/*/*.png"))) == 8


def test_case_that_would_vanish_is_refused(volumes):
    root = _volumes(volumes)
    volumes("images", "e", np.zeros((3, 3, 3), np.int16))
    volumes("labels", "e", np.zeros((3, 3, 3), np.uint8))
    with pytest.raises(DataError, match="1 cases show no object on any image, such as e"):
        _prepared(NiftiVolumes(), root, keep_empty=False)
    assert not (root / "prepared").exists()


def test_colour_stays_colour_and_sub_folders_stay_apart(image_folder):
    colour = np.arange(72, dtype=np.uint8).reshape(4, 6, 3)
    mask = np.eye(4, 6, dtype=np.uint8)
    names = ("x/a.png", "y/a.png", "y/b.png")
    done = _prepared(ImageFolder(), image_folder(dict.fromkeys(names, colour), dict.fromkeys(names, mask)))
    source = ImageFolder(case_pattern=CASE_PATTERN)
    source.open(done.folder)
    assert source.case_ids() == ("x__a", "y__a", "y__b")
    assert torch.equal(source[0].image, torch.from_numpy(colour).permute(2, 0, 1).float())


def test_overlapping_labels_are_refused_and_nothing_is_left(volumes):
    root = _volumes(volumes)
    source = NiftiVolumes(labels={"organ": [1, 3], "tumour": [3]})
    with pytest.raises(DataError, match="overlap, and one value a pixel is stored"):
        _prepared(source, root)
    assert sorted(path.name for path in root.iterdir()) == ["images", "labels"]


def test_label_above_255_is_refused(volumes):
    for case in "abc":
        volumes("images", case, np.zeros((3, 3, 3), np.int16))
        root = volumes("labels", case, np.full((3, 3, 3), 300, np.int16))
    with pytest.raises(DataError, match=r"label 300 is above 255\. Name the labels"):
        _prepared(NiftiVolumes(), root)


def test_folder_that_exists_is_never_written_over(volumes):
    root = _volumes(volumes)
    (root / "prepared").mkdir()
    with pytest.raises(DataError, match="exists already"):
        _prepared(NiftiVolumes(), root)


def test_spacing_and_unannotated_pixels_survive(volumes):
    labels = np.zeros((4, 5, 2), np.uint8)
    labels[1:3, 1:3], labels[3] = 1, 9
    for case in "abcd":
        volumes("images", case, np.arange(40, dtype=np.int16).reshape(4, 5, 2), np.diag([0.7, 1 / 3, 3.0, 1.0]))
        root = volumes("labels", case, labels, np.diag([0.7, 1 / 3, 3.0, 1.0]))
    source = NiftiVolumes()
    source.ignore_label = 9
    done = _prepared(source, root)
    assert done.ignore_label == 255
    prepared = ImageFolder(labels={"label 1": [1]}, case_pattern=CASE_PATTERN)
    prepared.ignore_label = 255
    prepared.open(done.folder)
    assert len(prepared) == len(source) == 8
    for index in range(8):
        assert prepared[index].spacing_mm == pytest.approx(source[index].spacing_mm, rel=1e-12)
        assert (prepared.voxel_size(index).row_mm, prepared.voxel_size(index).slice_mm) == (prepared[index].spacing_mm[0], None)
        assert torch.equal(prepared[index].ignored, source[index].ignored)
        assert torch.equal(prepared[index].masks.dense(), source[index].masks.dense())


def test_one_millimetre_is_a_spacing_and_no_spacing_is_none(volumes, tmp_path):
    for case in "abcd":
        volumes("images", case, np.arange(40, dtype=np.int16).reshape(4, 5, 2), np.eye(4))
        root = volumes("labels", case, np.ones((4, 5, 2), np.uint8), np.eye(4))
    once = ImageFolder(case_pattern=CASE_PATTERN)
    first = _prepared(NiftiVolumes(), root).folder
    again = ImageFolder(case_pattern=CASE_PATTERN)
    again.open(_prepared(once, first).folder)
    assert once.voxel_size(0) == again.voxel_size(0) == VoxelSize(1.0, 1.0)
    for path in first.glob("images/*/*.png"):
        Image.open(path).save(path)
    assert once.voxel_size(0) is None
    assert prepare_folder(once, tmp_path / "third", splits=make_splits(list("abcd"))).folder.is_dir()
    again.open(tmp_path / "third")
    assert again.voxel_size(0) is None

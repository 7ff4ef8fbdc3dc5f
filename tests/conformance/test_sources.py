"""What every source of images must keep, whatever its files look like."""

import json
import pickle

import numpy as np
import pytest
import torch

from medsam_tune.data import ImageFolder, MedsamNpy, MedsamNpz, NiftiVolumes, VolumeSource, apply_target
from medsam_tune.data.checks import check_cases
from medsam_tune.data.formats import DicomFormat, RasterFormat
from medsam_tune.errors import DataError
from tests.conformance.format_cases import FORMATS

BY_NAME = {case.name: case for case in FORMATS}
# The source, the format of its files, the folders of images and masks, and whether one file holds both.
SOURCES = {
    "ImageFolder": (lambda: ImageFolder(labels={"a": [1], "b": [2]}, case_pattern="^(p.)"), "raster", "images", "masks"),
    "NiftiVolumes": (lambda: NiftiVolumes(axis="coronal"), "nifti", "images", "labels"),
    "MedsamNpz": (MedsamNpz, "npz", ".", "."),
    "MedsamNpy": (MedsamNpy, "npy", "imgs", "gts"),
    "DICOM": (lambda: VolumeSource(DicomFormat()), "dicom", "images", "labels"),
    "VolumeSource": (lambda: VolumeSource(RasterFormat(), masks="masks"), "raster", "images", "masks"),
}
NAMES = ("p1-0", "p1-1", "p2-0", "p3-0")


@pytest.fixture(params=SOURCES, ids=list(SOURCES))
def folder(request, tmp_path):
    """Return (source's maker, data folder, folder of the masks) with four files and labels 1 and 2."""
    make, kind, images, masks = SOURCES[request.param]
    case, rng = BY_NAME[kind], np.random.default_rng(0)
    root = tmp_path / "DOE^JANE"
    for name in NAMES:
        scratch = tmp_path / name
        scratch.mkdir()
        image = rng.integers(0, 255, case.shape, dtype=np.uint8)
        paths = case.write(scratch, image, rng.integers(0, 3, case.shape, dtype=np.uint8))
        for part, path in zip((images, masks), dict.fromkeys(paths), strict=False):
            (root / part).mkdir(parents=True, exist_ok=True)
            path.rename(root / part / f"{name}{case.format.endings[0]}")
    return make, root, root / masks


@pytest.fixture
def source(folder):
    opened = folder[0]()
    opened.open(folder[1])
    return opened


def same(first, second):
    planes = [{**vars(sample), "masks": sample.masks.dense()} for sample in (first, second)]
    return all(
        torch.equal(left, right) if isinstance(left, torch.Tensor) else left == right
        for left, right in zip(*(plane.values() for plane in planes), strict=True)
    )


def test_lists_name_every_item_and_agree_with_what_is_read(source):
    lists = (source.image_ids(), source.case_ids(), source.places(), source.patient_ids())
    assert {len(names) for names in lists} == {len(source)}
    assert len(set(source.image_ids())) == len(set(source.places())) == len(source)
    for index, (image_id, case_id, place, _) in enumerate(zip(*lists, strict=True)):
        sample = source[index]
        assert (sample.image_id, sample.case_id, sample.index) == (image_id, case_id, index)
        assert (sample.volume_id, sample.slice_index) == place


def test_samples_are_grey_levels_with_masks_of_named_labels(source):
    names = source.label_names()
    seen = set()
    for index in range(len(source)):
        sample = source[index]
        assert sample.image.dtype == torch.float32
        assert (sample.image.ndim, sample.image.shape[0]) == (3, 3)
        assert 0 <= float(sample.image.min()) <= float(sample.image.max()) <= 255
        assert sample.masks.shape == (len(sample.labels), *sample.image.shape[1:])
        assert sample.masks.dense().dtype == torch.bool
        assert sample.masks.dense().flatten(1).any(dim=1).all()
        assert all(0 < size < 100 for size in sample.spacing_mm)
        seen |= set(sample.labels.tolist())
    assert seen == set(names) == {1, 2}


def test_reading_again_in_any_order_and_process_gives_the_same(source):
    first = [source[index] for index in range(len(source))]
    copy = pickle.loads(pickle.dumps(source))
    for index in reversed(range(len(source))):
        assert same(source[index], first[index])
        assert same(copy[index], first[index])


def test_a_purpose_chooses_among_the_items_asked_for(source):
    asked = list(range(0, len(source), 2))
    for purpose in ("train", "evaluate", "predict"):
        assert set(source.select(asked, purpose)) <= set(asked)
    assert source.select(range(len(source)), "predict") == list(range(len(source)))


def test_description_is_json_and_names_no_folder(source):
    assert "DOE" not in json.dumps(source.describe())


def test_files_of_every_item_are_there_and_every_case_is_checked_once(source, tmp_path):
    assert all(path.is_file() for index in range(len(source)) for path in source.files(index))
    checksums = check_cases(source, cache=tmp_path / "cache")
    assert set(checksums) == set(source.case_ids())
    assert len(set(checksums.values())) == len(checksums)


def test_damage_to_any_file_is_found_by_the_check(source, tmp_path):
    for path in {path for index in range(len(source)) for path in source.files(index)}:
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2])
        with pytest.raises(DataError, match=rf"^{path.as_posix().replace('^', '.')}: "):
            check_cases(source, cache=tmp_path / "cache")
        path.write_bytes(content)


def test_new_images_need_no_masks(folder):
    make, root, masks = folder
    if masks == root:
        pytest.skip("one file holds both")
    for path in masks.iterdir():
        path.unlink()
    with pytest.raises(DataError, match="without a mask"):
        make().open(root)
    source = make()
    source.open(root, require_masks=False)
    assert {len(source[index].labels) for index in range(len(source))} == {0}


def test_unannotated_pixels_belong_to_no_label(folder):
    make, root, _ = folder
    source = make()
    source.labels = {"a": [1]}
    source.ignore_label = 2
    source.open(root)
    full = make()
    full.open(root)
    for index in range(len(source)):
        partly, whole = source[index], full[index]
        assert partly.labels.tolist() == [1]
        assert torch.equal(partly.ignored, whole.masks.dense()[whole.labels.tolist().index(2)])
        assert not (partly.masks.dense() & partly.ignored).any()


@pytest.mark.parametrize("target", ["binary", "per_label", "per_class", "per_instance"])
@pytest.mark.parametrize("labels", [{"a": [1]}, None])
def test_unannotated_pixels_are_no_object_of_any_target(folder, target, labels):
    make, root, _ = folder
    source = make()
    source.labels, source.target, source.ignore_label = labels, target, 2
    source.open(root)
    full = make()
    full.open(root)
    for index in range(len(source)):
        sample, whole = source[index], full[index]
        unknown = whole.masks.dense()[whole.labels.tolist().index(2)]
        assert torch.equal(sample.ignored, unknown)
        known = tuple(source.named_labels()) or (1,)
        shown = apply_target(sample, target, classes=known)
        assert torch.equal(shown.masks.dense().any(dim=0), whole.masks.dense()[whole.labels.tolist().index(1)])
        assert torch.equal(shown.ignored, unknown)


def test_folder_that_is_not_there_is_one_error(folder, tmp_path):
    with pytest.raises(DataError, match=r"nowhere: no such folder"):
        folder[0]().open(tmp_path / "nowhere")

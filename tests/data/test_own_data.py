"""What ``init`` finds is what the source of its recipe reads: for each layout the same images, with the same masks."""

from importlib import import_module

import nibabel
import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.fingerprint import take_fingerprint
from medsam_tune.data.formats import DicomFormat, NiftiFormat
from medsam_tune.data.layouts import detect
from medsam_tune.data.own_data import data_settings, target_of, write_needed
from tests.data.layouts.test_layouts import PAIRED, SEVERAL, write
from tests.dicom_files import write_series, write_study


def built(described):
    """Build what a recipe describes, as the parser would."""
    room, _, kind = described["class_path"].rpartition(".")
    arguments = {
        key: built(value) if isinstance(value, dict) else value for key, value in described.get("init_args", {}).items()
    }
    return getattr(import_module(room), kind)(**arguments)


def opened(root, target=None):
    """Detect a folder and open the source that its settings name."""
    found = take_fingerprint(root, detect(root))
    beside = root.parent / "mine"
    settings = data_settings(found, target or target_of(found, "none"), beside=beside)
    write_needed(found, beside)
    module, _, name = settings.class_path.rpartition(".")
    arguments = dict(settings.init_args)
    for key in ("format", "mask_format"):
        if key in arguments:
            arguments[key] = built(arguments[key])
    source = getattr(import_module(module), name)(**arguments)
    source.target = settings.keys["target"]
    if "colours" in settings.keys:
        source.use_colours(settings.keys["colours"])
    source.open(root)
    return found, source


@pytest.mark.parametrize("case", PAIRED)
def test_source_reads_the_pairs_that_were_found(tmp_path, case):
    found, source = opened(write(tmp_path, *PAIRED[case][0]))
    assert sorted(set(source.case_ids())) == [pair.name for pair in found.pairing.pairs]
    assert all(int(source[index].masks.dense().sum()) == 56 for index in range(len(source)))


@pytest.mark.parametrize("case", ["a folder a case, fixed names", "BIDS", "LiTS"])
def test_notes_beside_volumes_are_no_pair(tmp_path, case):
    root = write(tmp_path, *PAIRED[case][0])
    for folder in {path.parent for path in root.rglob("*.nii*")} | {root}:
        (folder / "notes.txt").write_text("x")
    found, source = opened(root)
    assert len(set(source.case_ids())) == len(found.pairing.pairs) == 2


@pytest.mark.parametrize("case", SEVERAL)
def test_source_reads_the_classes_that_were_found(tmp_path, case):
    names, (_, _, labels) = SEVERAL[case]
    _, source = opened(write(tmp_path, *names))
    assert tuple(source.label_names().values()) == labels
    assert [int(mask.sum()) for mask in source[0].masks.dense()] == [56, 56]


def test_what_is_neither_image_nor_mask_is_left_out_in_few_words(tmp_path):
    names = [f"B_{n}/B_{n}_{kind}" for n in (1, 2) for kind in ("flair.nii", "other.nii", "raters.nii", "seg.nii=m")]
    found = take_fingerprint(tmp_path, detect(write(tmp_path, *names)))
    assert data_settings(found, "binary").init_args["exclude"] == ["*_other", "*_raters"]


def volume(path, values, spacing=(1, 1, 1)):
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.save(nibabel.Nifti1Image(values, np.diag([*spacing, 1])), path)


@pytest.fixture
def scans(tmp_path):
    """Three CT volumes, thick across the second axis: air, and an organ of 50 HU."""
    mask = np.zeros((12, 5, 12), np.uint8)
    mask[3:9, 1:4, 3:9] = 1
    for number in range(3):
        volume(tmp_path / f"images/{number}.nii.gz", np.where(mask, 50, -1000).astype(np.int16), (1, 4, 1))
        volume(tmp_path / f"labels/{number}.nii.gz", mask, (1, 4, 1))
    return tmp_path


def test_ct_gets_a_window_and_the_axis_across_which_slices_are_thick(scans):
    found = take_fingerprint(scans, detect(scans))
    settings = data_settings(found, "binary").init_args
    assert (settings["axis"], settings["window"]) == ("coronal", [-160.0, 240.0])
    assert found.n_slices() == 15


def test_what_the_prompt_is_decides_what_an_object_is(scans):
    found = take_fingerprint(scans, detect(scans))
    assert [target_of(found, prompt) for prompt in ("none", "box", "click")] == ["binary", "per_label", "per_label"]


def test_fingerprint_counts_what_is_small_at_the_input(scans):
    # A 6 x 3 piece of a 12 x 12 slice at a side of 6: three pixels high, halved.
    found = take_fingerprint(scans, detect(scans))
    assert found.small_objects(12) == (0, 9)
    assert found.small_objects(6) == (9, 9)
    told = found.as_json(6)
    assert (told["pairs"], told["sizes"], told["share_of_empty_slices"]) == (3, {"12 x 5 x 12": 3}, 0.4)


@pytest.fixture
def studies(tmp_path):
    """Four DICOM series, two of each patient, with a segmentation each."""
    mask = np.zeros((12, 10, 5), np.uint8)
    mask[3:9, 2:7, 1:4] = 1
    for number in range(4):
        write_study(tmp_path, f"s{number}", 100 + 500.0 * mask, mask, number=number)
    return tmp_path


def test_dicom_series_are_read_with_the_segmentations_that_name_them(studies):
    found, source = opened(studies)
    assert found.pairing.layout == "DICOM series with DICOM masks"
    assert (len(found.pairing.pairs), found.patient) == (4, "header")
    assert sum(int(source[index].masks.dense().sum()) for index in range(len(source))) == 4 * 90


def test_dicom_series_are_read_with_masks_of_another_format_that_are_named_after_them(tmp_path):
    volume_of_grey = np.arange(4 * 6 * 8, dtype=np.uint16).reshape(4, 6, 8)
    for number in range(3):
        folder = write_series(tmp_path / f"s{number}", volume_of_grey, SeriesInstanceUID=f"1.2.{number}")
        header = DicomFormat().read_header(folder)
        labels = np.zeros(header.stored_shape, np.uint8)
        labels[1:3, 1:3, 2:5] = 1
        NiftiFormat().write_labels(tmp_path / f"s{number}_mask", labels, header)
    found, source = opened(tmp_path)
    assert [pair.name for pair in found.pairing.pairs] == ["s0", "s1", "s2"]
    assert sum(int(source[index].masks.dense().sum()) for index in range(len(source))) == 3 * 12


def test_tiff_of_several_pages_is_a_volume(tmp_path):
    mask = np.zeros((4, 10, 12), np.uint8)
    mask[1:3, 2:6, 3:9] = 255
    for number in range(3):
        for name, values in ((f"img{number}.tif", mask // 2 + number), (f"mask{number}.tif", mask)):
            pages = [Image.fromarray(page) for page in values]
            pages[0].save(tmp_path / name, save_all=True, append_images=pages[1:])
    found, source = opened(tmp_path)
    assert (type(found.pairing.format).__name__, len(found.pairing.pairs), found.n_slices()) == ("TiffFormat", 3, 12)
    assert sum(int(source[index].masks.dense().sum()) for index in range(len(source))) == 3 * 48

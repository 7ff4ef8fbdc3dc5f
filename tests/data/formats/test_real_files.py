"""Files of other programs with the answers that their authors give; ``real/ATTRIBUTION.md`` says where they come from."""

import shutil
import subprocess
from pathlib import Path

import nibabel
import nrrd
import numpy as np
import pytest
from pydicom.data import get_testdata_file

from medsam_tune.data.formats import DicomFormat, DicomStructures, NiftiFormat, NrrdFormat, check_same_grid

REAL = Path(__file__).parent / "real"
FORM = DicomFormat()


@pytest.mark.parametrize("image", ["image", "multiframe/mf.dcm"])
def test_frames_that_begin_inside_a_byte_are_the_labels_of_the_nrrd_file(image):
    # 23 x 38 = 874 bits a frame.
    header = FORM.read_header(REAL / "dcmqi_23x38x3" / image)
    path = REAL / "dcmqi_23x38x3/seg/label.seg"
    assert FORM.check_labels(path, header)
    found = FORM.read_labels_on(path, header)
    stored, _ = nrrd.read(str(REAL / "dcmqi_23x38x3/nrrd/label.nrrd"))
    np.testing.assert_array_equal(found, stored.transpose(2, 1, 0))
    assert found.sum() == 322
    np.testing.assert_array_equal(NrrdFormat().read_labels_on(REAL / "dcmqi_23x38x3/nrrd/label.nrrd", header), found)
    assert header.voxel_mm == pytest.approx((0.7, 0.7, 2.5))
    np.testing.assert_allclose(header.affine[:3, 3], [-46.4649, -5.01881, -177.75])


def test_a_sparse_label_map_leaves_out_slices_and_padding():
    header = FORM.read_header(REAL / "dcmqi_labelmap/image")
    path = REAL / "dcmqi_labelmap/sparse-labelmap-ppv5.dcm"
    found = FORM.read_labels_on(path, header)
    assert (found.shape, np.unique(found).tolist(), int((found == 1).sum())) == ((3, 38, 24), [0, 1], 630)
    assert FORM.read_label_names(path) == {1: "Liver"}
    assert FORM.read_labels_on(REAL / "dcmqi_labelmap/label.seg", header).sum() == 315


def test_an_oblique_series_with_a_rescale_a_slice_is_its_authors_nifti():
    header = FORM.read_header(REAL / "dicom2nifti_non_isotropic")
    values = FORM.read_image(REAL / "dicom2nifti_non_isotropic")
    reference = nibabel.load(REAL / "dicom2nifti_non_isotropic.nii.gz")
    assert float(values.astype(np.float64).sum()) == pytest.approx(369895.4, abs=0.1)
    nifti = NiftiFormat().read_header(REAL / "dicom2nifti_non_isotropic.nii.gz")
    check_same_grid(header, nifti)
    np.testing.assert_allclose(header.to_ras(values), nifti.to_ras(np.asarray(reference.dataobj)), rtol=1e-6)


def test_an_rgb_series_in_jpeg_2000_has_its_authors_sum():
    values = FORM.read_image(REAL / "dicom2nifti_rgb")
    assert (values.shape, int(values.astype(int).sum())) == ((4, 77, 52, 3), 2732889)


def test_slicer_segments_in_two_layers_keep_name_and_voxels():
    path = REAL / "SegmentationOverlapping.seg.nrrd"
    found, names = NrrdFormat().read_labels(path), NrrdFormat().read_label_names(path)
    counts = {names[number]: int((found == number).sum()) for number in names}
    assert counts == {
        "ribs": 8487,
        "cervical vertebral column": 1216,
        "thoracic vertebral column": 2712,
        "lumbar vertebral column": 3259,
        "right lung": 34450,
        "left lung": 33700,
        "tissue": 154589,
        "overlapping sphere": 19139,
    }


@pytest.mark.parametrize("form", [DicomFormat(), DicomStructures()])
def test_masks_of_a_shuffled_series_are_read_back_on_the_same_voxels(tmp_path, form):
    series = REAL / "dcmqi_23x38x3/image"
    for name, path in zip("cab", sorted(series.iterdir()), strict=True):
        shutil.copy(path, tmp_path / name)
    header, shuffled = FORM.read_header(series), FORM.read_header(tmp_path)
    np.testing.assert_array_equal(shuffled.affine, header.affine)
    np.testing.assert_array_equal(FORM.read_image(tmp_path), FORM.read_image(series))
    labels = FORM.read_labels_on(REAL / "dcmqi_23x38x3/seg/label.seg", shuffled).astype(np.uint8)
    path = form.write_labels(tmp_path / "out" / "answer", labels, shuffled, {1: "Liver"})
    np.testing.assert_array_equal(form.read_labels_on(path, header), labels)


def errors_of(path):
    """What Debian's dicom3tools find wrong with a file."""
    said = subprocess.run(["dciodvfy", "-new", path], capture_output=True, text=True, timeout=300)
    return [line for line in (said.stdout + said.stderr).splitlines() if line.startswith("Error")]


NEEDS_VALIDATOR = pytest.mark.skipif(shutil.which("dciodvfy") is None, reason="needs dciodvfy of Debian's dicom3tools")


@NEEDS_VALIDATOR
@pytest.mark.parametrize("form", [DicomFormat(), DicomStructures(), DicomFormat(patient="copied")])
@pytest.mark.parametrize("image", ["image", "multiframe/mf.dcm"])
def test_written_objects_are_without_error_to_a_validator(tmp_path, form, image):
    header = FORM.read_header(REAL / "dcmqi_23x38x3" / image)
    labels = FORM.read_labels_on(REAL / "dcmqi_23x38x3/seg/label.seg", header).astype(np.uint8)
    assert errors_of(form.write_labels(tmp_path / "answer", labels, header, {1: "Liver", 2: "liver tumour"})) == []


# Files that pydicom ships for its own tests: ultrasound, a capture of a screen, a bone scan without a position, MR.
@NEEDS_VALIDATOR
@pytest.mark.parametrize(
    "name", ["examples_rgb_color", "SC_ybr_full_422_uncompressed", "image_dfl", "JPEG2000", "MR_small_RLE"]
)
def test_masks_of_pictures_are_without_error_to_a_validator(tmp_path, name):
    image = Path(get_testdata_file(f"{name}.dcm", download=False))
    header = FORM.read_header(image)
    labels = np.zeros(header.stored_shape, np.uint8)
    labels[0, 2:9, 3:5] = 1
    assert FORM.read_image(image).shape[:3] == labels.shape
    path = FORM.write_labels(tmp_path / "answer", labels, header, {1: "Liver"})
    assert errors_of(path) == []
    np.testing.assert_array_equal(FORM.read_labels_on(path, header), labels)

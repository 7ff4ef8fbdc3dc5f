"""NIfTI files as the format reads and writes them: damage, odd headers, exact labels, and what never leaves a source."""

import gzip

import nibabel
import numpy as np
import pytest

from medsam_tune.data.formats.nifti import NiftiFormat
from medsam_tune.errors import DataError, DataWarning

NAME = "DOE^JANE"
VALUES = np.arange(60, dtype=np.int16).reshape(3, 4, 5)
LABELS = (VALUES % 3).astype(np.uint8)
OBLIQUE = np.array([[0, 0, 2.0, 5], [-1.5, 0.1, 0, 7], [0.1, 0.5, 0, -3], [0, 0, 0, 1]])
TEXT_FIELDS = ("descrip", "aux_file", "db_name", "intent_name", "data_type")


def save(path, values, affine=None, kind=nibabel.Nifti1Image, **fields):
    image = kind(values, np.eye(4) if affine is None else affine, dtype=values.dtype)
    for field, value in fields.items():
        image.header[field] = value
    nibabel.save(image, path)
    return path


def damage(path, **fields):
    """Write header fields as they are, past nibabel's own checks."""
    content = bytearray(path.read_bytes())
    header = nibabel.Nifti1Header(bytes(content[:348]), check=False)
    for field, value in fields.items():
        header[field] = value
    path.write_bytes(header.binaryblock + bytes(content[348:]))
    return path


@pytest.mark.parametrize("kind", [nibabel.Nifti1Image, nibabel.Nifti2Image])
def test_written_masks_hold_the_sources_geometry_and_none_of_its_words(tmp_path, kind):
    image = kind(VALUES, OBLIQUE)
    for field in [field for field in TEXT_FIELDS if field in image.header.keys()]:  # noqa: SIM118 - a header is no dict
        image.header[field] = NAME
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("comment", NAME.encode()))
    image.header.extensions.append(nibabel.nifti1.Nifti1Extension("dicom", NAME.encode()))
    image.set_qform(OBLIQUE, code="scanner")
    image.set_sform(OBLIQUE, code="mni")
    image.header.set_xyzt_units("micron", "sec")
    image.header["cal_max"] = 77
    nibabel.save(image, tmp_path / "a.nii.gz")
    form = NiftiFormat()
    assert NAME.encode() in gzip.decompress((tmp_path / "a.nii.gz").read_bytes())
    path = form.write_labels(tmp_path / "out", LABELS, form.read_header(tmp_path / "a.nii.gz"))
    content = gzip.decompress(path.read_bytes())
    assert NAME.encode() not in content
    assert b"DOE" not in content
    found = nibabel.load(path)
    assert type(found) is kind
    np.testing.assert_array_equal(np.asarray(found.dataobj), LABELS)
    source = nibabel.load(tmp_path / "a.nii.gz")
    for get in ("get_sform", "get_qform"):
        (matrix, code), (expected, expected_code) = (getattr(item, get)(coded=True) for item in (found, source))
        np.testing.assert_array_equal(matrix, expected)
        assert code == expected_code
    assert found.header.get_zooms() == source.header.get_zooms()
    assert found.header.get_xyzt_units() == ("micron", "unknown")
    assert (float(found.header["cal_max"]), len(found.header.extensions)) == (0.0, 0)


def test_geometry_of_a_header_without_transforms_stays_as_it_was(tmp_path):
    path = save(tmp_path / "a.nii.gz", VALUES)
    image = nibabel.load(path)
    image.header["sform_code"] = image.header["qform_code"] = 0
    image.header["pixdim"][1:4] = [2, 3, 4]
    nibabel.save(nibabel.Nifti1Image(VALUES, None, image.header), tmp_path / "b.nii.gz")
    form = NiftiFormat()
    written = nibabel.load(form.write_labels(tmp_path / "out", LABELS, form.read_header(tmp_path / "b.nii.gz")))
    np.testing.assert_array_equal(written.affine, nibabel.load(tmp_path / "b.nii.gz").affine)
    assert (int(written.header["sform_code"]), int(written.header["qform_code"])) == (0, 0)


def test_every_flipped_bit_of_the_packed_voxels_is_found(tmp_path):
    noise = np.random.default_rng(0).integers(0, 1000, (8, 8, 8)).astype(np.int16)
    content = save(tmp_path / "a.nii.gz", noise).read_bytes()
    form = NiftiFormat()
    np.testing.assert_array_equal(form.read_image(tmp_path / "a.nii.gz"), noise)
    # Behind the packed header, and the checksum itself.
    for place in (*range(200, len(content) - 8, 97), len(content) - 6):
        flipped = bytearray(content)
        flipped[place] ^= 16
        (tmp_path / "b.nii.gz").write_bytes(flipped)
        with pytest.raises(DataError, match=r"b\.nii\.gz: "):
            form.read_image(tmp_path / "b.nii.gz")


def test_header_that_claims_more_than_the_file_holds_is_refused_before_memory_is_taken(tmp_path):
    path = damage(save(tmp_path / "a.nii", VALUES), dim=[3, 30000, 30000, 30000, 1, 1, 1, 1])
    with pytest.raises(DataError, match=r"a\.nii: claims 54000000000352 bytes of voxels .*the file has \d+\. It is truncated"):
        NiftiFormat().read_image(path)
    packed = tmp_path / "b.nii.gz"
    packed.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"b\.nii\.gz: claims"):
        NiftiFormat().read_image(packed)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"srow_x": [np.nan, 0, 0, 0]}, "its affine holds NaN or infinity. Repair"),
        ({"srow_x": [0, 0, 0, 0]}, "orientation is unknown. Repair"),
        ({"sform_code": 0, "pixdim": [1, 0, 1, 1, 1, 1, 1, 1]}, r"states voxel sizes \[0\.0, 1\.0, 1\.0\]"),
        ({"scl_slope": np.inf}, "states scl_slope inf"),
        ({"dim": [3, 0, 4, 5, 1, 1, 1, 1]}, r"an axis without voxels"),
        ({"xyzt_units": 5}, "cannot be read as NIfTI"),
        ({"datatype": 9999}, "cannot be read as NIfTI"),
    ],
)
def test_header_that_would_be_repaired_in_silence_is_refused(tmp_path, fields, message):
    path = damage(save(tmp_path / "a.nii", VALUES), **fields)
    with pytest.raises(DataError, match=rf"a\.nii: .*{message}"):
        NiftiFormat().read_header(path)


@pytest.mark.parametrize("dtype", [np.complex64, np.dtype([("R", "u1"), ("G", "u1"), ("B", "u1")])])
def test_values_that_are_no_real_numbers_are_refused(tmp_path, dtype):
    path = save(tmp_path / "a.nii", np.zeros((3, 4, 5), dtype))
    with pytest.raises(DataError, match=r"a\.nii: stores .*, expected real numbers"):
        NiftiFormat().read_image(path)
    with pytest.raises(DataError, match=r"a\.nii: stores .*, expected label values"):
        NiftiFormat().read_labels(path)


@pytest.mark.parametrize("dtype", [np.int32, np.uint32, np.int64, np.float64])
def test_labels_above_the_reach_of_float32_stay_apart(tmp_path, dtype):
    labels = np.array([[[0, 2**24, 2**24 + 1, 2**31 - 1]]], dtype)
    assert NiftiFormat().read_labels(save(tmp_path / "a.nii", labels)).tolist() == [[[0, 2**24, 2**24 + 1, 2**31 - 1]]]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        (np.array([[[0, 3_000_000_000]]], np.uint32), r"no whole numbers from 0 to 2147483647, such as \[3000000000\]"),
        (np.array([[[0, 2**40]]], np.int64), r"such as \[1099511627776\]"),
        (np.array([[[0, -1]]], np.int16), r"such as \[-1\]"),
        (np.array([[[0, 0.5]]], np.float32), r"such as \[0\.5\]"),
        (np.array([[[0, 2**24 + 2]]], np.float32), "holds label 16777218 as float32, which skips numbers above 16777216"),
    ],
)
def test_label_that_cannot_be_exact_is_refused(tmp_path, labels, message):
    with pytest.raises(DataError, match=rf"a\.nii: .*{message}.*"):
        NiftiFormat().read_labels(save(tmp_path / "a.nii", labels))


def test_scaled_voxels_are_the_scaled_numbers(tmp_path):
    image = nibabel.Nifti1Image(VALUES, np.eye(4))
    image.header.set_slope_inter(2, -7)
    image.header.set_data_dtype(np.int16)
    path = tmp_path / "a.nii.gz"
    nibabel.save(image, path)
    np.testing.assert_allclose(NiftiFormat().read_image(path), nibabel.load(path).get_fdata(), atol=1e-4)


def test_two_axes_are_a_volume_of_one_slice_and_its_masks_lie_on_it(tmp_path):
    nibabel.save(nibabel.Nifti1Image(VALUES[0], np.diag([-2, 3, 1, 1])), tmp_path / "flat.nii")
    header = NiftiFormat().read_header(tmp_path / "flat.nii")
    assert (header.stored_shape, header.voxel_mm) == ((4, 5, 1), (2, 3, 1))
    np.testing.assert_array_equal(NiftiFormat().read_image(tmp_path / "flat.nii")[..., 0], VALUES[0])
    labels = (np.arange(20).reshape(4, 5, 1) % 3).astype(np.uint8)
    written = NiftiFormat().write_labels(tmp_path / "out", labels, header)
    np.testing.assert_array_equal(NiftiFormat().read_labels_on(written, header), labels)


def test_the_pair_of_header_and_image_is_no_single_file(tmp_path):
    nibabel.save(nibabel.Nifti1Pair(VALUES, np.eye(4)), tmp_path / "pair.hdr")
    (tmp_path / "pair.hdr").rename(tmp_path / "pair.nii")
    with pytest.raises(DataError, match="no such header"):
        NiftiFormat().read_header(tmp_path / "pair.nii")


@pytest.mark.parametrize(
    ("qform", "said"),
    [
        (np.diag([-1, 1, 3, 1]), "RAS by sform, LAS by qform"),
        (np.diag([2, 1, 3, 1]), "voxels of 1 x 1 x 3 mm by sform, voxels of 2 x 1 x 3 mm by qform"),
    ],
)
def test_two_transforms_that_disagree_are_said_aloud(tmp_path, qform, said):
    image = nibabel.Nifti1Image(np.zeros((3, 4, 5), np.uint8), np.diag([1, 1, 3, 1]))
    image.set_sform(np.diag([1, 1, 3, 1]), 1)
    image.set_qform(qform, 1)
    nibabel.save(image, tmp_path / "x.nii.gz")
    with pytest.warns(DataWarning, match=said):
        header = NiftiFormat().read_header(tmp_path / "x.nii.gz")
    np.testing.assert_array_equal(header.affine, np.diag([1, 1, 3, 1]))

"""FreeSurfer, PAR/REC, AFNI, MINC and Analyze, read through nibabel."""

import gzip
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest

from medsam_tune.data.formats import AfniFormat, AnalyzeFormat, FreeSurferFormat, NiftiFormat, ParRecFormat, format_of
from medsam_tune.errors import DataError, DataWarning

OBLIQUE = np.array([[0, 0.1, 2.0, 5], [-1.5, 0.1, 0, 7], [0.1, 0.5, 0, -3], [0, 0, 0, 1]])
VALUES = np.random.default_rng(0).integers(0, 200, (5, 6, 4))


def test_freesurfers_volumes_are_read_where_they_lie_and_written_as_such(tmp_path):
    nibabel.save(nibabel.MGHImage(VALUES.astype(np.int16), OBLIQUE), tmp_path / "T1.mgz")
    form = FreeSurferFormat()
    header = form.read_header(tmp_path / "T1.mgz")
    np.testing.assert_allclose(header.affine, OBLIQUE, atol=1e-5)
    np.testing.assert_array_equal(form.read_image(tmp_path / "T1.mgz"), VALUES)
    labels = (VALUES % 7).astype(np.uint8)
    written = form.write_labels(tmp_path / "out", labels, header)
    assert written == form.written_as(tmp_path / "out") == tmp_path / "out.mgz"
    np.testing.assert_array_equal(form.read_labels_on(written, header), labels)


def test_what_is_not_written_back_becomes_nifti_on_the_same_places(tmp_path):
    image = nibabel.Spm99AnalyzeImage(VALUES.astype(np.int16), OBLIQUE)
    nibabel.save(image, tmp_path / "scan.img")
    form = AnalyzeFormat()
    header = form.read_header(tmp_path / "scan.hdr")
    np.testing.assert_allclose(header.affine, OBLIQUE, atol=1e-5)
    labels = (VALUES % 7).astype(np.uint8)
    written = form.write_labels(tmp_path / "out", labels, header)
    assert written == form.written_as(tmp_path / "out")
    np.testing.assert_array_equal(NiftiFormat().read_labels_on(written, header), labels)


def test_analyze_without_directions_is_taken_as_spm_does_and_that_is_said(tmp_path):
    nibabel.save(nibabel.AnalyzeImage(VALUES.astype(np.int16), np.diag([-2, 2, 2, 1])), tmp_path / "scan.img")
    with pytest.warns(DataWarning, match="do not say which side is left"):
        header = AnalyzeFormat().read_header(tmp_path / "scan.hdr")
    assert header.affine[0, 0] == -2


def test_missing_voxels_time_points_and_damage_are_refused(tmp_path):
    nibabel.save(nibabel.Spm99AnalyzeImage(VALUES.astype(np.int16), OBLIQUE), tmp_path / "scan.img")
    (tmp_path / "scan.img").unlink()
    with pytest.raises(DataError, match=r"scan\.hdr: its voxels' file scan\.img is missing"):
        AnalyzeFormat().read_header(tmp_path / "scan.hdr")
    nibabel.save(nibabel.MGHImage(np.zeros((3, 4, 5, 2), np.float32), np.eye(4)), tmp_path / "two.mgz")
    with pytest.raises(DataError, match=r"expected a volume of 3 axes\. Save each time point"):
        FreeSurferFormat().read_header(tmp_path / "two.mgz")
    for form, name in ((FreeSurferFormat(), "bad.mgz"), (ParRecFormat(), "bad.par"), (AfniFormat(), "bad+orig.head")):
        (tmp_path / name).write_bytes(b"nothing of that kind")
        with pytest.raises(DataError, match="cannot be read as"):
            form.read_header(tmp_path / name)


def test_a_header_that_claims_more_than_its_file_holds_is_refused(tmp_path):
    nibabel.save(nibabel.MGHImage(VALUES.astype(np.int16), OBLIQUE), tmp_path / "big.mgz")
    stored = bytearray(gzip.decompress((tmp_path / "big.mgz").read_bytes()))
    stored[4:16] = np.array([300, 300, 300], ">i4").tobytes()
    (tmp_path / "big.mgz").write_bytes(gzip.compress(stored))
    with pytest.raises(DataError, match=r"claims \d+ bytes of voxels"):
        FreeSurferFormat().read_header(tmp_path / "big.mgz")


def test_files_are_known_by_their_endings_whatever_their_case():
    from pathlib import Path

    assert [type(format_of(Path(name))).__name__ for name in ("a.MGZ", "a.PAR", "a+orig.HEAD", "a.mnc", "a.hdr")] == [
        "FreeSurferFormat",
        "ParRecFormat",
        "AfniFormat",
        "MincFormat",
        "AnalyzeFormat",
    ]


# What nibabel ships for its own tests: MINC 1 and 2, AFNI, a Philips scan of three time points, FreeSurfer's of two.
REAL = Path(nibabel.__file__).parent / "tests" / "data"
needs_real_files = pytest.mark.skipif(not (REAL / "small.mnc").is_file(), reason="nibabel was installed without its tests")


@needs_real_files
@pytest.mark.parametrize("name", ["small.mnc", "minc1_1_scale.mnc", "minc2_1_scale.mnc", "tiny.mnc", "scaled+tlrc.HEAD"])
def test_files_of_other_programs_are_read_as_nibabel_shows_them(name):
    form = format_of(REAL / name)
    header, values = form.read_header(REAL / name), form.read_image(REAL / name)
    image = nibabel.load(REAL / name)
    expected = nibabel.as_closest_canonical(nibabel.Nifti1Image(image.get_fdata().reshape(values.shape), image.affine))
    np.testing.assert_allclose(header.to_ras(values), expected.get_fdata(), rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(header.ras_affine, expected.affine, atol=1e-6)


@needs_real_files
def test_one_time_point_of_a_philips_scan_lies_where_nibabel_puts_it(tmp_path):
    text = (REAL / "phantom_EPI_asc_CLEAR_2_1.PAR").read_text(encoding="latin-1").splitlines(keepends=True)
    # An image is a line of numbers: slice, echo, dynamic, ...
    lines = [line for line in text if not line.strip()[:1].isdigit() or line.split()[2] == "1"]
    single = "".join(lines).replace("dynamics            :   3", "dynamics            :   1")
    (tmp_path / "a.PAR").write_text(single, encoding="latin-1")
    shutil.copy(REAL / "phantom_EPI_asc_CLEAR_2_1.REC", tmp_path / "a.REC")
    form = format_of(tmp_path / "a.PAR")
    header, values = form.read_header(tmp_path / "a.PAR"), form.read_image(tmp_path / "a.PAR")
    whole = nibabel.load(REAL / "phantom_EPI_asc_CLEAR_2_1.PAR")
    np.testing.assert_allclose(values, whole.get_fdata()[..., 0], rtol=1e-5)
    np.testing.assert_allclose(header.affine, whole.affine, atol=1e-6)
    whole.dataobj.file_like.close()


@needs_real_files
@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("phantom_EPI_asc_CLEAR_2_1.PAR", r"shape \(64, 64, 9, 3\), expected a volume of 3 axes"),
        ("example4d+orig.HEAD", r"shape \(33, 41, 25, 3\), expected a volume of 3 axes"),
        ("test.mgz", r"shape \(3, 4, 5, 2\), expected a volume of 3 axes"),
        ("T1.PAR", r"its voxels' file T1\.REC is missing"),
        ("analyze.hdr", r"its voxels' file analyze\.img is missing"),
        ("bad_datatype+orig.HEAD", "cannot be read as AFNI volume"),
        ("phantom_truncated.PAR", "cannot be read as PAR/REC"),
    ],
)
def test_files_of_other_programs_that_are_no_volume_are_refused_by_name(name, words):
    with pytest.raises(DataError, match=words):
        format_of(REAL / name).read_header(REAL / name)

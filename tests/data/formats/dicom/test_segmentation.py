import highdicom
import numpy as np
import pytest
from highdicom.seg import Segmentation, SegmentDescription
from pydicom import dcmread
from pydicom.sr.codedict import codes
from pydicom.uid import UltrasoundImageStorage

from medsam_tune.data.formats import DicomFormat
from medsam_tune.errors import DataError, DataWarning, RecipeError
from tests.dicom_files import NAME, plane, save, write_multiframe, write_series

VOLUME = np.random.default_rng(0).integers(0, 1000, (4, 5, 7), dtype=np.int16)
LABELS = np.random.default_rng(1).integers(0, 3, VOLUME.shape, dtype=np.uint8)


@pytest.fixture
def series(tmp_path):
    return write_series(tmp_path / "c1", VOLUME)


def by_highdicom(series, masks, kind="BINARY", path=None, **changes):
    """Write (D, H, W, K) masks, whose planes run upwards, with an independent writer."""
    sources = sorted((dcmread(path) for path in series.iterdir()), key=lambda one: one.ImagePositionPatient[2])
    described = [
        SegmentDescription(number, f"part {number}", codes.SCT.Tissue, codes.SCT.Tissue, "MANUAL")
        for number in range(1, masks.shape[-1] + 1)
    ]
    uid = highdicom.UID
    made = Segmentation(sources, masks, kind, described, uid(), 1, uid(), 1, "m", "m", "1", "0")
    for keyword, value in changes.items():
        setattr(made, keyword, value)
    made.save_as(path or series.parent / "seg.dcm")
    return path or series.parent / "seg.dcm"


def read(series, masks, form=None):
    form = form or DicomFormat()
    header = form.read_header(series)
    assert form.check_labels(masks, header)
    return form.read_labels_on(masks, header)


def test_segments_that_overlap_keep_every_voxel_in_layers(series):
    # 5 x 7 = 35 bits a frame, so every frame but the first begins inside a byte.
    masks = np.random.default_rng(2).random((*VOLUME.shape, 3)) < 0.3
    masks[:2, ..., 1] = False
    found = read(series, by_highdicom(series, masks.astype(np.uint8)))
    assert found.ndim == 4
    for number in (1, 2, 3):
        np.testing.assert_array_equal((found == number).any(axis=-1), masks[..., number - 1])


def test_label_map_is_read_by_its_values(series):
    masks = np.stack([LABELS == 1, LABELS == 2], axis=-1).astype(np.uint8)
    np.testing.assert_array_equal(read(series, by_highdicom(series, masks, "LABELMAP")), LABELS)


def test_segments_are_named(series):
    masks = np.stack([LABELS == 1, LABELS == 2], axis=-1).astype(np.uint8)
    assert DicomFormat().read_label_names(by_highdicom(series, masks)) == {1: "part 1", 2: "part 2"}


def test_fractions_are_object_from_the_stated_share_on(series):
    shares = np.random.default_rng(3).random((*VOLUME.shape, 1)).astype(np.float32)
    path = by_highdicom(series, shares, "FRACTIONAL")
    largest = 255  # highdicom's MaximumFractionalValue; it stores rounded shares of it
    for fraction in (0.5, 0.25):
        form = DicomFormat(fraction=fraction)
        with pytest.warns(DataWarning, match=rf"FRACTIONAL segmentation; pixels of {fraction} of its largest value {largest}"):
            assert form.read_label_names(path) == {1: "part 1"}
        found = form.read_labels_on(path, form.read_header(series))
        np.testing.assert_array_equal(found == 1, np.rint(shares[..., 0] * largest) >= fraction * largest)
    with pytest.raises(RecipeError, match=r"format\.fraction: expected a share above 0, at most 1, got 0"):
        DicomFormat(fraction=0)


def test_other_coordinates_are_refused(series, tmp_path):
    masks = (LABELS == 1)[..., None].astype(np.uint8)
    other = write_series(tmp_path / "c2", VOLUME, SeriesInstanceUID="9.9", FrameOfReferenceUID="9.8")
    path = by_highdicom(series, masks)
    with pytest.raises(DataError, match=r"seg\.dcm: lies in another frame of reference"):
        read(other, path)
    shifted = [(-9.9, 20, 30 + 3 * number) for number in range(4)]
    moved = write_series(tmp_path / "c3", VOLUME, positions=shifted)
    with pytest.raises(DataError, match=r"seg\.dcm: frame 1 does not lie on the voxels of the image: off by 0\.2 voxels"):
        read(moved, path)
    shorter = write_series(tmp_path / "c4", VOLUME[:3])
    with pytest.raises(DataError, match="has object pixels outside the image"):
        read(shorter, path)


@pytest.mark.parametrize("kind", ["series", "multi-frame", "single"])
def test_what_is_written_is_read_back_on_the_same_voxels(series, tmp_path, kind):
    labels = LABELS
    image = series
    if kind == "multi-frame":
        image = write_multiframe(tmp_path / "mf.dcm", VOLUME, [2, 0, 3, 1], [1, 1, 1, 1])
    elif kind == "single":
        image, labels = save(tmp_path / "one.dcm", plane(VOLUME[0])), LABELS[:1]
    form = DicomFormat()
    header = form.read_header(image)
    path = form.write_labels(tmp_path / "answer", labels, header, {1: "Liver", 2: "liver tumour"})
    np.testing.assert_array_equal(read(image, path), labels)
    np.testing.assert_allclose(form.read_label_header(path).affine, header.affine, atol=1e-6)
    assert form.read_label_names(path) == {1: "Liver", 2: "liver tumour"}


def test_written_segments_have_codes_and_refer_to_their_slices(series, tmp_path):
    header = DicomFormat().read_header(series)
    first, second = (DicomFormat().write_labels(tmp_path / name, LABELS, header, {2: "liver tumour"}) for name in "ab")
    written, again = dcmread(first), dcmread(second)
    (kind,) = written.SegmentSequence[1].SegmentedPropertyTypeCodeSequence
    assert (kind.CodeValue, kind.CodingSchemeDesignator) == ("108369006", "SCT")
    assert [item.SegmentLabel for item in written.SegmentSequence] == ["label 1", "liver tumour"]
    assert {item.SegmentAlgorithmType for item in written.SegmentSequence} == {"AUTOMATIC"}
    assert written.ReferencedSeriesSequence[0].SeriesInstanceUID == "1.2.3.4"
    uids = {dcmread(path).SOPInstanceUID for path in series.iterdir()}
    assert {item.ReferencedSOPInstanceUID for item in written.ReferencedSeriesSequence[0].ReferencedInstanceSequence} == uids
    assert written.SOPInstanceUID != again.SOPInstanceUID
    assert written.SeriesInstanceUID not in ("1.2.3.4", again.SeriesInstanceUID)


def test_patient_is_left_out_unless_it_is_asked_for(series, tmp_path):
    header = DicomFormat().read_header(series)
    hidden = DicomFormat().write_labels(tmp_path / "a", LABELS, header).read_bytes()
    assert not any(word in hidden for word in (NAME.encode(), b"19590203", b"20190405"))
    filed = dcmread(DicomFormat(patient="copied").write_labels(tmp_path / "b", LABELS, header))
    assert (str(filed.PatientName), filed.PatientID, filed.StudyDate) == (NAME, NAME, "20190405")


def test_series_without_a_frame_of_reference_cannot_be_referred_to(tmp_path):
    header = DicomFormat().read_header(write_series(tmp_path / "c1", VOLUME, FrameOfReferenceUID=None))
    with pytest.raises(DataError, match=r"\.dcm: states no FrameOfReferenceUID.* Write NIfTI instead"):
        DicomFormat().write_labels(tmp_path / "a", LABELS, header)


def test_no_object_is_a_segmentation_too(series, tmp_path):
    header = DicomFormat().read_header(series)
    path = DicomFormat().write_labels(tmp_path / "a", np.zeros_like(LABELS), header, {1: "liver"})
    assert not read(series, path).any()


def test_numbers_that_no_segment_has_are_refused(series, tmp_path):
    header = DicomFormat().read_header(series)
    with pytest.raises(DataError, match="label 500 is no number that DICOM gives a segment"):
        DicomFormat().write_labels(tmp_path / "a", LABELS.astype(np.uint16) * 250, header)


def test_masks_find_their_series_by_what_they_refer_to(series, tmp_path):
    other = write_series(tmp_path / "c2", VOLUME, SeriesInstanceUID="9.9")
    masks = tmp_path / "masks"
    masks.mkdir()
    one = by_highdicom(series, LABELS[..., None] % 2, path=masks / "x.dcm")
    two = by_highdicom(other, LABELS[..., None] % 2, path=masks / "y")
    form = DicomFormat()
    assert form.find_labels(masks).files == [one, two]
    assert form.find(masks).files == []
    images = {"first": series, "second": other}
    assert form.image_names([one, two], masks, images) == {one: "first", two: "second"}
    (masks / "first").mkdir()
    three = by_highdicom(write_series(tmp_path / "c3", VOLUME, SeriesInstanceUID="8.8"), LABELS[..., None] % 2)
    three = three.rename(masks / "first" / "z.dcm")
    assert form.image_names([three], masks, images) == {three: "first"}


def picture(path):
    """An ultrasound picture: no place in space."""
    bare = dict.fromkeys(("ImagePositionPatient", "ImageOrientationPatient", "FrameOfReferenceUID", "SliceThickness"))
    kind = {"PixelSpacing": None, "SOPClassUID": UltrasoundImageStorage, "Modality": "US"}
    return save(path, plane(VOLUME[0], **bare | kind))


def test_pictures_without_a_place_are_each_read_with_their_own_masks(tmp_path):
    # Both of one series, as an ultrasound machine saves them.
    form, images, masks = DicomFormat(), {}, {}
    for number, name in enumerate(("first", "second")):
        images[name] = picture(tmp_path / "images" / f"{name}.dcm")
        masks[name] = form.write_labels(tmp_path / f"answer {name}", LABELS[[number]], form.read_header(images[name]))
        np.testing.assert_array_equal(read(images[name], masks[name]), LABELS[[number]])
        np.testing.assert_array_equal(form.read_labels(masks[name]), LABELS[[number]])
    found = form.image_names(list(masks.values()), tmp_path, images)
    assert found == {masks["first"]: "first", masks["second"]: "second"}
    with pytest.raises(DataError, match=r"answer first\.dcm: was drawn on another picture than .*second\.dcm"):
        read(images["second"], masks["first"])


def test_masks_of_a_picture_fit_no_slice_in_space(series, tmp_path):
    form = DicomFormat()
    path = form.write_labels(tmp_path / "a", LABELS[:1], form.read_header(picture(tmp_path / "x.dcm")))
    with pytest.raises(DataError, match=r"a\.dcm: frame 1 of 5 x 7 states no place in space"):
        read(series, path)


@pytest.mark.parametrize("stated", [None, ""])
def test_slices_that_state_no_thickness_are_as_thick_as_they_are_apart(tmp_path, stated):
    header = DicomFormat().read_header(write_series(tmp_path / "c1", VOLUME, SliceThickness=stated))
    path = DicomFormat().write_labels(tmp_path / "a", LABELS, header)
    assert dcmread(path).SharedFunctionalGroupsSequence[0].PixelMeasuresSequence[0].SliceThickness == 3
    np.testing.assert_array_equal(read(tmp_path / "c1", path), LABELS)

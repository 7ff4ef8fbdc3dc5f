import numpy as np
import pytest
from pydicom import dcmread
from pydicom.dataset import Dataset

from medsam_tune.data.formats import DicomFormat, DicomStructures
from medsam_tune.errors import DataError, DataWarning
from tests.dicom_files import NAME, plane, save, write_series

VOLUME = np.zeros((4, 40, 60), np.int16)
# The series' first pixel lies at (-10, 20, 30); 0.5 mm a column, 0.7 mm a row, 3 mm a slice.
ORIGIN, SIZES = np.array([-10, 20, 30]), np.array([0.5, 0.7, 3])


def square(low, high, position):
    """Return a contour in mm around columns and rows ``low`` to ``high`` of a slice, through pixel centres' midpoints."""
    corners = np.array([[low, low], [high, low], [high, high], [low, high]], float)
    return np.column_stack([corners, np.full(4, position)]) * SIZES + ORIGIN


def structures(path, regions, kind="CLOSED_PLANAR", frame="1.2.3.5", series="1.2.3.4"):
    """Write a structure set of {number: (name, [contours])}."""
    dataset = plane(VOLUME[0, :1], ImagePositionPatient=None, ImageOrientationPatient=None)
    dataset.Modality, dataset.SOPClassUID = "RTSTRUCT", "1.2.840.10008.5.1.4.1.1.481.3"
    for word in ("PixelData", "Rows", "Columns", "FrameOfReferenceUID"):
        delattr(dataset, word)
    of_frame, study, of_series = Dataset(), Dataset(), Dataset()
    of_frame.FrameOfReferenceUID, of_series.SeriesInstanceUID = frame, series
    study.RTReferencedSeriesSequence, of_frame.RTReferencedStudySequence = [of_series], [study]
    dataset.ReferencedFrameOfReferenceSequence = [of_frame]
    dataset.StructureSetROISequence, dataset.ROIContourSequence = [], []
    for number, (name, contours) in regions.items():
        roi, drawn = Dataset(), Dataset()
        roi.ROINumber, roi.ROIName, drawn.ReferencedROINumber = number, name, number
        drawn.ContourSequence = []
        for points in contours:
            contour = Dataset()
            contour.ContourGeometricType, contour.ContourData = kind, [f"{value:.6f}" for value in np.ravel(points)]
            drawn.ContourSequence.append(contour)
        dataset.StructureSetROISequence.append(roi)
        dataset.ROIContourSequence.append(drawn)
    return save(path, dataset)


def read(tmp_path, regions, **settings):
    form = DicomFormat()
    header = form.read_header(write_series(tmp_path / "c1", VOLUME))
    path = structures(tmp_path / "rt.dcm", regions, **settings)
    assert form.check_labels(path, header)
    return form.read_labels_on(path, header), form.read_label_names(path)


def test_several_contours_and_holes_are_filled_on_their_slices(tmp_path):
    contours = [square(1.5, 11.5, 1), square(3.5, 5.5, 1), square(19.5, 29.5, 1), square(1.5, 2.5, 3)]
    found, names = read(tmp_path, {4: ("Heart", contours), 9: ("Point", [])})
    # By hand: 10 x 10 pixels less a hole of 2 x 2, another 10 x 10, and 1 pixel on the last slice.
    assert [(found[position] == 4).sum() for position in range(4)] == [0, 96 + 100, 0, 1]
    assert found[1, 2:12, 2:12].sum() == 4 * 96
    assert found[3, 2, 2] == 4
    assert names == {4: "Heart"}


def test_area_of_a_polygon_is_that_of_its_pixels(tmp_path):
    angles = np.linspace(0, 2 * np.pi, 200, endpoint=False)
    ellipse = np.column_stack([30 + 26.3 * np.cos(angles), 20 + 17.7 * np.sin(angles), np.full(200, 2)]) * SIZES + ORIGIN
    found, _ = read(tmp_path, {1: ("E", [ellipse])})
    x, y = ellipse[:, 0], ellipse[:, 1]
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert (found == 1).sum() * 0.35 == pytest.approx(area, rel=0.01)


def test_regions_that_overlap_are_layers(tmp_path):
    found, _ = read(tmp_path, {1: ("A", [square(0.5, 10.5, 0)]), 2: ("B", [square(5.5, 15.5, 0)])})
    assert [(found == number).any(axis=-1).sum() for number in (1, 2)] == [100, 100]


def test_contours_beyond_the_image_are_said_and_those_between_slices_refused(tmp_path):
    with pytest.warns(DataWarning, match=r"rt\.dcm: 1 contours lie beyond the first or last slice"):
        found, _ = read(tmp_path, {1: ("A", [square(0.5, 10.5, 0), square(0.5, 10.5, 5)])})
    assert (found == 1).sum() == 100
    with pytest.raises(DataError, match=r"rt\.dcm: a contour of region 1 lies 0\.4 slices off slice 2"):
        read(tmp_path, {1: ("A", [square(0.5, 10.5, 1.4)])})
    across = square(0.5, 10.5, 1)
    across[0, 2] += 3
    with pytest.raises(DataError, match="slices off slice"):
        read(tmp_path, {1: ("A", [across])})


def test_open_lines_are_no_regions(tmp_path):
    found, names = read(tmp_path, {1: ("Line", [square(0.5, 10.5, 0)])}, kind="OPEN_PLANAR")
    assert names == {}
    assert not found.any()


def test_another_frame_of_reference_counts_only_where_the_series_is_not_named(tmp_path):
    found, _ = read(tmp_path, {1: ("A", [square(0.5, 10.5, 0)])}, frame="7.7")
    assert (found == 1).sum() == 100
    with pytest.raises(DataError, match=r"rt\.dcm: lies in another frame of reference"):
        read(tmp_path, {1: ("A", [square(0.5, 10.5, 0)])}, frame="7.7", series="7.8")


def test_written_outlines_have_the_area_of_their_pixels_and_are_read_back(tmp_path):
    series = write_series(tmp_path / "c1", VOLUME)
    labels = np.zeros(VOLUME.shape, np.uint8)
    labels[1, 5:25, 10:40], labels[1, 10:15, 20:25], labels[2, 3, 3], labels[3, 30:35, 50:60] = 1, 2, 1, 2
    form = DicomStructures()
    header = form.read_header(series)
    path = form.write_labels(tmp_path / "answer", labels, header, {1: "Heart"})
    np.testing.assert_array_equal(form.read_labels_on(path, header), labels)
    assert form.read_label_names(path) == {1: "Heart", 2: "label 2"}
    written = dcmread(path)
    areas = []
    for contour in written.ROIContourSequence[0].ContourSequence:
        points = np.array(contour.ContourData, float).reshape(-1, 3)
        areas.append(abs(np.dot(points[:, 0], np.roll(points[:, 1], -1)) - np.dot(points[:, 1], np.roll(points[:, 0], -1))) / 2)
    # By hand: 20 x 30 pixels around a hole of 5 x 5, and one pixel; 0.35 square millimetres each.
    assert sorted(areas) == pytest.approx([0.35, 25 * 0.35, 600 * 0.35])
    assert NAME.encode() not in path.read_bytes()
    assert written.ROIContourSequence[1].ContourSequence[0].ContourImageSequence[0].ReferencedSOPInstanceUID in {
        dcmread(file).SOPInstanceUID for file in series.iterdir()
    }


def test_contours_alone_have_no_voxels(tmp_path):
    path = structures(tmp_path / "rt.dcm", {1: ("A", [square(0.5, 10.5, 0)])})
    with pytest.raises(DataError, match="whose contours need the image"):
        DicomFormat().read_label_header(path)

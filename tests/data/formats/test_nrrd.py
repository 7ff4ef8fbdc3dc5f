import nrrd
import numpy as np
import pytest

from medsam_tune.data.formats import NiftiFormat, NrrdFormat
from medsam_tune.errors import DataError

VALUES = np.random.default_rng(0).integers(0, 200, (3, 4, 5), dtype=np.uint8)
GEOMETRY = {
    "space": "left-posterior-superior",
    "space directions": [[-0.5, 0, 0], [0, 0.7, 0], [0, 0, 3]],
    "space origin": [1, 2, 3],
}


def written(path, values=VALUES, **header):
    nrrd.write(str(path), values, {**GEOMETRY, **header})
    return path


def test_axes_and_space_say_where_voxels_lie(tmp_path):
    found = NrrdFormat().read_header(written(tmp_path / "a.nrrd"))
    # By hand: left and back are minus right and minus front.
    np.testing.assert_allclose(found.affine, [[0.5, 0, 0, -1], [0, -0.7, 0, -2], [0, 0, 3, 3], [0, 0, 0, 1]])
    other = written(tmp_path / "b.nrrd", **{"space": "RAI"})
    np.testing.assert_allclose(NrrdFormat().read_header(other).affine[:3, 3], [1, 2, -3])


def test_segments_of_overlapping_layers_keep_name_and_voxels(tmp_path):
    layers = np.zeros((2, 3, 4, 5), np.uint8)
    layers[0, :2], layers[0, 2], layers[1, 1:] = 1, 2, 1
    segments = [("ribs", 0, 1), ("lung", 0, 2), ("ball", 1, 1)]
    fields = {
        f"Segment{number}_{key}": str(value)
        for number, segment in enumerate(segments)
        for key, value in zip(("Name", "Layer", "LabelValue"), segment, strict=True)
    }
    directions = np.vstack([[np.nan] * 3, GEOMETRY["space directions"]])
    path = written(
        tmp_path / "a.seg.nrrd",
        layers,
        **{"space directions": directions, "kinds": ["list", "domain", "domain", "domain"]},
        **fields,
    )
    image = NrrdFormat().read_header(written(tmp_path / "image.nrrd"))
    assert NrrdFormat().check_labels(path, image)
    found = NrrdFormat().read_labels_on(path, image)
    assert NrrdFormat().read_label_names(path) == {1: "ribs", 2: "lung", 3: "ball"}
    assert [int((found == number).sum()) for number in (1, 2, 3)] == [40, 20, 40]
    with pytest.raises(DataError, match="axis 0 is none of space"):
        NrrdFormat().read_image(path)


def test_values_of_segments_that_are_unique_keep_their_numbers(tmp_path):
    values = (VALUES % 2 * 5).astype(np.uint8)
    path = written(tmp_path / "a.seg.nrrd", values, Segment0_Name="spine", Segment0_LabelValue="5")
    assert NrrdFormat().read_label_names(path) == {5: "spine"}
    np.testing.assert_array_equal(NrrdFormat().read_labels(path), values)
    stray = written(tmp_path / "b.seg.nrrd", values + 1, Segment0_Name="spine", Segment0_LabelValue="6")
    with pytest.raises(DataError, match=r"b\.seg\.nrrd: holds the values \[1\], which no segment has"):
        NrrdFormat().read_labels(stray)


def test_written_segments_are_named(tmp_path):
    header = NrrdFormat().read_header(written(tmp_path / "a.nrrd"))
    path = NrrdFormat().write_labels(tmp_path / "b", VALUES % 3, header, {2: "left\nlung"})
    assert NrrdFormat().read_label_names(path) == {1: "label 1", 2: "left lung"}
    assert nrrd.read_header(str(path))["space"] == "left-posterior-superior"


def test_masks_of_another_format_fit_by_geometry(tmp_path):
    image = NrrdFormat().read_header(written(tmp_path / "a.nrrd"))
    labels = (VALUES % 3).astype(np.uint8)
    path = NiftiFormat().write_labels(tmp_path / "b", labels, image)
    # In NIfTI the first axis runs the other way.
    np.testing.assert_array_equal(NiftiFormat().read_labels(path), labels[:, ::-1])
    assert NiftiFormat().check_labels(path, image)
    np.testing.assert_array_equal(NiftiFormat().read_labels_on(path, image), labels)


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ({"space": "scanner-xyz"}, "states the space 'scanner-xyz'"),
        ({"space directions": [[0, 0, 0], [0, 1, 0], [0, 0, 1]]}, "so the orientation is unknown"),
    ],
)
def test_geometry_that_cannot_be_known_is_refused(tmp_path, header, message):
    with pytest.raises(DataError, match=rf"a\.nrrd: .*{message}"):
        NrrdFormat().read_header(written(tmp_path / "a.nrrd", **header))


def test_more_voxels_than_bytes_are_refused(tmp_path):
    path = written(tmp_path / "a.nrrd", encoding="raw")
    path.write_bytes(path.read_bytes().replace(b"sizes: 3 4 5", b"sizes: 30000 40000 5"))
    with pytest.raises(DataError, match=r"a\.nrrd: claims 6000000000 voxels"):
        NrrdFormat().read_image(path)


def test_segmentation_cut_to_a_box_is_put_where_it_lies(tmp_path):
    whole = np.zeros((3, 4, 5), np.uint8)
    whole[1:3, 2:4, 1:4] = 7
    whole[1, 2, 1] = 0
    image = NrrdFormat().read_header(written(tmp_path / "image.nrrd"))
    # The first voxel (1, 2, 1) by hand: 1 - 0.5, 2 + 2 * 0.7, 3 + 3.
    named = {"Segment0_Name": "ball", "Segment0_LabelValue": "7", "space origin": [0.5, 3.4, 6]}
    path = written(tmp_path / "a.seg.nrrd", whole[1:3, 2:4, 1:4], **named)
    assert NrrdFormat().check_labels(path, image)
    np.testing.assert_array_equal(NrrdFormat().read_labels_on(path, image), whole)
    layers = np.stack([whole[1:3, 2:4, 1:4], whole[1:3, 2:4, 1:4]])
    directions = np.vstack([[np.nan] * 3, GEOMETRY["space directions"]])
    second = {"Segment1_Name": "other", "Segment1_LabelValue": "7", "Segment1_Layer": "1"}
    two = {"space directions": directions, "kinds": ["list", "domain", "domain", "domain"], **named, **second}
    found = NrrdFormat().read_labels_on(written(tmp_path / "b.seg.nrrd", layers, **two), image)
    assert found.shape == (3, 4, 5, 2)
    np.testing.assert_array_equal(found > 0, np.stack([whole, whole], axis=-1) > 0)


@pytest.mark.parametrize(
    ("origin", "message"),
    [
        ([0.6, 3.4, 6], r"mask voxels lie between those of the image, \(0\.8, 2\.0, 1\.0\) voxels from its first"),
        ([-1.0, 3.4, 6], r"labelled voxels lie outside of the image. Save it with the image as its reference"),
    ],
)
def test_box_that_does_not_lie_on_the_image_is_refused(tmp_path, origin, message):
    image = NrrdFormat().read_header(written(tmp_path / "image.nrrd"))
    named = {"Segment0_Name": "ball", "Segment0_LabelValue": "1", "space origin": origin}
    path = written(tmp_path / "a.seg.nrrd", np.ones((2, 2, 3), np.uint8), **named)
    with pytest.raises(DataError, match=message):
        NrrdFormat().read_labels_on(path, image)
    # A plain label map names no segment and is taken for another grid.
    plain = written(tmp_path / "b.nrrd", np.ones((2, 2, 3), np.uint8))
    with pytest.raises(DataError, match=r"mask shape \(2, 2, 3\) differs from image shape"):
        NrrdFormat().read_labels_on(plain, image)

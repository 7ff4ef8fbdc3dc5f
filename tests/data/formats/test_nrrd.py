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

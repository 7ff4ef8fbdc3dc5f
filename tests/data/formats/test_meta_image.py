import zlib

import numpy as np
import pytest

from medsam_tune.data.formats import MetaImageFormat
from medsam_tune.errors import DataError

VALUES = np.random.default_rng(0).integers(-900, 900, (3, 4, 5), dtype=np.int16)


def written(path, content=None, **changes):
    words = {
        "ObjectType": "Image",
        "NDims": "3",
        "BinaryDataByteOrderMSB": "False",
        "TransformMatrix": "0 1 0 -1 0 0 0 0 1",
        "Offset": "1 2 3",
        "ElementSpacing": "0.5 0.7 3",
        "DimSize": "3 4 5",
        "ElementType": "MET_SHORT",
        **changes,
        "ElementDataFile": changes.get("ElementDataFile", "LOCAL"),
    }
    content = VALUES.tobytes(order="F") if content is None else content
    text = "".join(f"{key} = {value}\n" for key, value in words.items())
    path.write_bytes(text.encode() + (content if words["ElementDataFile"] == "LOCAL" else b""))
    return path


def test_first_axis_changes_fastest_and_rows_of_the_matrix_are_directions(tmp_path):
    path = written(tmp_path / "a.mha")
    np.testing.assert_array_equal(MetaImageFormat().read_image(path), VALUES)
    # By hand: the first axis runs along y (back), the second along -x (right), turned from LPS to RAS.
    expected = [[0, 0.7, 0, -1], [-0.5, 0, 0, -2], [0, 0, 3, 3], [0, 0, 0, 1]]
    np.testing.assert_allclose(MetaImageFormat().read_header(path).affine, expected)


def test_bytes_may_be_packed_swapped_or_beside_the_header(tmp_path):
    swapped = written(tmp_path / "b.mha", VALUES.astype(">i2").tobytes(order="F"), BinaryDataByteOrderMSB="True")
    packed = written(tmp_path / "c.mha", zlib.compress(VALUES.tobytes(order="F")), CompressedData="True")
    (tmp_path / "d.raw").write_bytes(VALUES.tobytes(order="F"))
    beside = written(tmp_path / "d.mhd", ElementDataFile="d.raw")
    for path in (swapped, packed, beside):
        np.testing.assert_array_equal(MetaImageFormat().read_image(path), VALUES)


def test_colours_are_the_last_axis(tmp_path):
    colours = np.random.default_rng(0).integers(0, 255, (3, 3, 4, 5), dtype=np.uint8)
    path = written(tmp_path / "a.mha", colours.tobytes(order="F"), ElementNumberOfChannels="3", ElementType="MET_UCHAR")
    np.testing.assert_array_equal(MetaImageFormat().read_image(path), np.moveaxis(colours, 0, -1))
    with pytest.raises(DataError, match="has 3 values a voxel; a mask has one"):
        MetaImageFormat().read_labels(path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"DimSize": "3 4 5 2"}, r"has shape \(3, 4, 5, 2\), expected a volume of 3 axes"),
        ({"DimSize": "30000 40000 5"}, "claims 12000000000 bytes of voxels, but the file has 120"),
        ({"ElementType": "MET_OTHER"}, "has the ElementType 'MET_OTHER'"),
        ({"ElementDataFile": "../../etc/passwd"}, "its voxels lie in another folder"),
        ({"ElementDataFile": "LIST"}, "its voxels lie in several files"),
        ({"ElementSpacing": "0 1 1"}, "so the orientation is unknown"),
    ],
)
def test_what_is_no_volume_is_refused(tmp_path, changes, message):
    with pytest.raises(DataError, match=rf"a\.mha: .*{message}"):
        MetaImageFormat().read_image(written(tmp_path / "a.mha", **changes))


def test_a_small_file_that_unpacks_to_much_is_refused(tmp_path):
    path = written(tmp_path / "a.mha", zlib.compress(bytes(10_000_000)), CompressedData="True")
    with pytest.raises(DataError, match="holds more than the 120 bytes of its shape"):
        MetaImageFormat().read_image(path)

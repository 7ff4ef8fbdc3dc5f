import numpy as np
import pytest
import tifffile

from medsam_tune.data.formats import TiffFormat
from medsam_tune.errors import DataError

VALUES = np.random.default_rng(0).integers(0, 60000, (3, 5, 6), dtype=np.uint16)


def test_pages_of_sixteen_bits_are_slices_as_they_are_stored(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", VALUES, compression="zlib", photometric="minisblack")
    header, values = TiffFormat().read_header(tmp_path / "a.tif"), TiffFormat().read_image(tmp_path / "a.tif")
    np.testing.assert_array_equal(values, VALUES)
    assert (header.stored_shape, header.states_spacing) == ((3, 5, 6), False)


def test_spacing_of_ome_and_imagej_is_millimetres(tmp_path):
    sizes = {"PhysicalSizeX": 0.5, "PhysicalSizeY": 700, "PhysicalSizeZ": 3}
    units = {"PhysicalSizeXUnit": "mm", "PhysicalSizeZUnit": "mm"}
    tifffile.imwrite(tmp_path / "a.ome.tif", VALUES, metadata={"axes": "ZYX", **sizes, **units})
    assert TiffFormat().read_header(tmp_path / "a.ome.tif").voxel_mm == pytest.approx((0.5, 0.7, 3))
    facts = {"axes": "ZYX", "spacing": 3.0, "unit": "mm"}
    tifffile.imwrite(tmp_path / "b.tif", VALUES, imagej=True, resolution=(1 / 0.5, 1 / 0.7), metadata=facts)
    assert TiffFormat().read_header(tmp_path / "b.tif").voxel_mm == pytest.approx((0.5, 0.7, 3), rel=1e-4)


def test_big_endian_pages_and_single_images_are_read(tmp_path):
    tifffile.imwrite(tmp_path / "a.ome.tif", VALUES.astype(">u2"), byteorder=">", metadata={"axes": "ZYX"})
    np.testing.assert_array_equal(TiffFormat().read_image(tmp_path / "a.ome.tif"), VALUES)
    tifffile.imwrite(tmp_path / "b.tif", VALUES[0])
    np.testing.assert_array_equal(TiffFormat().read_image(tmp_path / "b.tif"), VALUES[:1])
    assert not TiffFormat().read_header(tmp_path / "b.tif").is_volume


@pytest.mark.parametrize(("axes", "shape"), [("TYX", (3, 5, 6)), ("CYX", (3, 5, 6)), ("TZYX", (2, 3, 5, 6))])
def test_time_points_and_channels_are_no_slices(tmp_path, axes, shape):
    values = np.zeros(shape, np.uint16)
    tifffile.imwrite(tmp_path / "a.ome.tif", values, metadata={"axes": axes}, photometric="minisblack")
    with pytest.raises(DataError, match=rf"a\.ome\.tif: has the axes {axes} of lengths .*, expected Z, Y, X"):
        TiffFormat().read_image(tmp_path / "a.ome.tif")


def test_colours_are_an_image_and_no_mask(tmp_path):
    values = np.random.default_rng(0).integers(0, 255, (5, 6, 3), dtype=np.uint8)
    tifffile.imwrite(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(TiffFormat().read_image(tmp_path / "a.tif")[0], values)
    with pytest.raises(DataError, match="is in colour; a mask holds one value"):
        TiffFormat().read_labels(tmp_path / "a.tif")

"""MedSAM's npz files as the format reads and writes them."""

import zipfile

import numpy as np
import pytest

from medsam_tune.data.formats.npz import NpzFormat
from medsam_tune.errors import DataError

VOLUME = np.arange(48, dtype=np.uint8).reshape(2, 4, 6)


def save(path, **arrays):
    np.savez_compressed(path, **arrays)
    return path


def test_masks_are_written_as_segs_with_the_spacing_and_no_other_key(tmp_path):
    form = NpzFormat()
    source = save(tmp_path / "a.npz", imgs=VOLUME, spacing=(0.5, 0.7, 3.0), patient=np.array("DOE^JANE"))
    path = form.write_labels(tmp_path / "out", VOLUME % 2, form.read_header(source))
    with np.load(path) as archive:
        assert sorted(archive.files) == ["segs", "spacing"]
        np.testing.assert_array_equal(archive["segs"], VOLUME % 2)
        assert archive["spacing"].tolist() == pytest.approx([0.5, 0.7, 3.0])
    assert b"DOE" not in path.read_bytes()


@pytest.mark.parametrize(("dtype", "value"), [("M8[s]", 0), ("U3", "abc"), (np.complex64, 1j)])
def test_values_that_are_no_grey_levels_are_refused(tmp_path, dtype, value):
    path = save(tmp_path / "a.npz", imgs=np.full((2, 3, 3), value, dtype), gts=np.full((2, 3, 3), value, dtype))
    with pytest.raises(DataError, match=r"a\.npz: imgs: stores .*, expected real numbers"):
        NpzFormat().read_image(path)
    with pytest.raises(DataError, match=r"a\.npz: gts: stores .*, expected label values"):
        NpzFormat().read_labels(path)


def test_bool_images_are_0_and_1(tmp_path):
    path = save(tmp_path / "a.npz", imgs=VOLUME % 2 > 0)
    np.testing.assert_array_equal(NpzFormat().read_image(path), VOLUME % 2)


def test_array_that_claims_more_than_the_archive_holds_is_refused_before_memory_is_taken(tmp_path):
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive, archive.open("imgs.npy", "w") as file:
        header = {"descr": "|u1", "fortran_order": False, "shape": (10**12, 10**12)}
        np.lib.format.write_array_header_1_0(file, header)
    with pytest.raises(DataError, match=r"a\.npz: imgs claims 10{24} bytes .*but has \d+"):
        NpzFormat().read_header(tmp_path / "a.npz")


def test_damaged_member_is_found_by_its_checksum(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=VOLUME)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    place = content.index(VOLUME.tobytes())
    content[place + 7] ^= 1
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read .*Bad CRC"):
        NpzFormat().read_image(tmp_path / "a.npz")


def test_unknown_compression_is_refused_with_the_path(tmp_path):
    np.savez(tmp_path / "a.npz", imgs=VOLUME)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    for signature, offset in ((b"PK\x03\x04", 8), (b"PK\x01\x02", 10)):
        content[content.index(signature) + offset] = 97
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz: cannot be read as \.npz .*compression"):
        NpzFormat().read_header(tmp_path / "a.npz")

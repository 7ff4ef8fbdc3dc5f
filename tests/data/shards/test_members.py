"""A member is read as a file is, in every process; what was changed on the disk is seen."""

import os
import pickle

import numpy as np
import pytest
from PIL import Image

from medsam_tune.data.formats.raster import RasterFormat, image_size, read_mask_values, read_pixels
from medsam_tune.data.shards.headers import read_members
from medsam_tune.data.shards.members import LARGEST_MEMBER, ShardFiles, digest_of, member_path
from medsam_tune.errors import DataError
from tests.data.shards.tar_files import pair, png, write_tar


def members_of(shard, **settings):
    files = ShardFiles([shard])
    return [member_path(files, name, (0, offset, size), **settings) for name, offset, size in read_members(shard)]


@pytest.fixture
def shard(tmp_path):
    return write_tar(tmp_path / "s.tar", pair("p/a", level=77))


def test_pixels_sizes_and_dates_are_those_of_the_file(shard):
    image, mask = members_of(shard)
    assert str(image) == f"{shard}/p/a.png"
    np.testing.assert_array_equal(read_pixels(image), np.full((8, 10), 77))
    assert read_mask_values(mask).sum() == 12
    assert image_size(mask) == (8, 10)
    assert image.stat().st_size == len(image.read_bytes()) == len(png(np.full((8, 10), 77)))
    assert image.stat().st_mtime_ns == shard.stat().st_mtime_ns
    assert RasterFormat().read_header(image).stored_shape == (1, 8, 10)


def test_colours_of_sixteen_bits_are_read_whole(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.arange(8 * 10 * 3, dtype=np.uint16).reshape(8, 10, 3) * 200
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb")
    shard = write_tar(tmp_path / "s.tar", [("a.tif", (tmp_path / "a.tif").read_bytes())])
    np.testing.assert_array_equal(read_pixels(members_of(shard)[0]), values)


def test_a_member_travels_to_another_process_with_handles_of_its_own(shard):
    image = members_of(shard, patient="p1")[0]
    before = read_pixels(image)
    there = pickle.loads(pickle.dumps(image))
    assert (there, there.patient) == (image, "p1")
    np.testing.assert_array_equal(read_pixels(there), before)


def test_a_forked_process_opens_its_own_handle(shard, monkeypatch):
    image = members_of(shard)[0]
    read_pixels(image)
    first = image._files._handles[0]
    monkeypatch.setattr(os, "getpid", lambda: -1)
    read_pixels(image)
    assert image._files._handles[0] is not first


def test_no_more_than_32_shards_are_open_at_a_time(tmp_path):
    shards = [write_tar(tmp_path / f"{number}.tar", [("a.png", b"%d" % number)]) for number in range(40)]
    files = ShardFiles(shards)
    assert [int(files.read(number, 512, len(str(number)))) for number in range(40)] == list(range(40))
    assert len(files._handles) == 32


def test_content_with_another_checksum_is_refused(shard):
    right = members_of(shard, digest=digest_of(png(np.full((8, 10), 77))))[0]
    assert read_pixels(right)[0, 0] == 77
    with pytest.raises(DataError, match=r"s\.tar/p/a\.mask\.png: is not what was written \(its checksum differs\)"):
        read_pixels(members_of(shard, digest=b"12345678")[1])


def test_a_shard_that_ends_too_early_or_is_gone_is_told(shard, tmp_path):
    image = members_of(shard)[0]
    shard.write_bytes(shard.read_bytes()[:550])
    with pytest.raises(DataError, match=r"p/a\.png: is cut off after 38 of \d+ bytes"):
        read_pixels(image)
    shard.unlink()
    with pytest.raises(DataError, match=r"a\.mask\.png: cannot be read \(No such file or directory\)"):
        read_pixels(member_that_is_gone(tmp_path))


def member_that_is_gone(tmp_path):
    shard = write_tar(tmp_path / "t.tar", pair("a"))
    found = members_of(shard)[1]
    shard.unlink()
    return found


def test_a_size_beyond_the_limit_asks_for_no_memory(shard):
    huge = member_path(ShardFiles([shard]), "a.png", (0, 512, LARGEST_MEMBER + 1))
    with pytest.raises(DataError, match="has 1073741825 bytes, at most 1073741824 are read"):
        read_pixels(huge)


def test_what_is_no_image_is_named_and_not_shown_as_an_object(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("a.png", b"no image")])
    with pytest.raises(DataError, match=r"s\.tar/a\.png: cannot be read \(cannot identify image file '.*a\.png'\)"):
        read_pixels(members_of(shard)[0])


def test_paths_beside_a_member_are_ordinary(shard):
    image = members_of(shard)[0]
    assert image.parent.parent.stat().st_size == shard.stat().st_size
    assert not image.with_suffix(".jpg").exists()
    assert Image.open(image.open("rb")).size == (10, 8)

"""The members of a tar file are those that tarfile lists, at the offsets where their bytes lie; damage is never silent."""

import io
import tarfile

import pytest

from medsam_tune.data.shards.headers import read_members
from medsam_tune.errors import DataError
from tests.data.shards.tar_files import write_tar


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
def test_members_and_offsets_are_those_of_tarfile(tmp_path, form):
    long = "b" * 99 if form == tarfile.USTAR_FORMAT else "ä/" + "b" * 200
    members = [("a.png", b"x" * 513), ("./p/c.png", b""), (long, b"y" * 1024)]
    shard = write_tar(tmp_path / "s.tar", members, form)
    with tarfile.open(shard) as tar:
        expected = [(info.name.removeprefix("./"), info.offset_data, info.size) for info in tar.getmembers()]
    assert [tuple(member) for member in read_members(shard)] == expected
    assert [name for name, _, _ in expected] == ["a.png", "p/c.png", long]


def test_folders_are_left_out_and_a_size_in_an_extended_header_counts(tmp_path):
    shard = tmp_path / "s.tar"
    with tarfile.open(shard, "w", format=tarfile.PAX_FORMAT) as tar:
        folder = tarfile.TarInfo("p")
        folder.type = tarfile.DIRTYPE
        tar.addfile(folder)
        info = tarfile.TarInfo("p/a.png")
        info.size, info.pax_headers = 3, {"size": "3", "comment": "none"}
        tar.addfile(info, io.BytesIO(b"abc"))
    (member,) = read_members(shard)
    assert (member.name, member.size) == ("p/a.png", 3)
    assert shard.read_bytes()[member.offset : member.offset + 3] == b"abc"


def spoilt(shard, change):
    content = bytearray(shard.read_bytes())
    shard.write_bytes(bytes(change(content)))
    return shard


def overwritten(content, place, new):
    content[place : place + len(new)] = new
    return content


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda content: content[:1612], r"member 'b.png' is said to have 600 bytes, 76 are left"),
        (lambda content: content[:1024], r"after member 'a.png' stands no header of a tar file \(empty header\)"),
        (lambda content: content[:700], r"member 'a.png' is said to have 500 bytes, 188 are left"),
        (lambda content: content[:300], r"is no uncompressed tar file \(truncated header\)"),
        (lambda content: b"", r"is no uncompressed tar file \(empty header\)"),
        (lambda content: b"\x1f\x8b" + content, r"is no uncompressed tar file"),
        (
            lambda content: overwritten(content, 1024, b"X"),
            r"after member 'a.png' stands no header of a tar file \(bad checksum\)",
        ),
    ],
)
def test_damage_is_told_with_shard_and_member(tmp_path, change, text):
    shard = spoilt(write_tar(tmp_path / "s.tar", [("a.png", b"x" * 500), ("b.png", b"y" * 600)]), change)
    with pytest.raises(DataError, match=rf"s\.tar: .*{text}"):
        list(read_members(shard))


@pytest.mark.parametrize("name", ["../a.png", "/a.png", "a//b.png", "p/./a.png", "a\\b.png", "a\nb.png"])
def test_names_that_are_no_plain_paths_are_refused(tmp_path, name):
    shard = write_tar(tmp_path / "s.tar", [(name, b"x")])
    with pytest.raises(DataError, match="has no plain name below a folder"):
        list(read_members(shard))


def test_links_are_refused(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w") as tar:
        info = tarfile.TarInfo("a.png")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    with pytest.raises(DataError, match=r"member 'a\.png' is a link"):
        list(read_members(tmp_path / "s.tar"))


def test_a_size_that_a_header_claims_is_compared_with_the_file_before_anything_is_read(tmp_path):
    with tarfile.open(tmp_path / "s.tar", "w", format=tarfile.GNU_FORMAT) as tar:
        info = tarfile.TarInfo("a.png")
        info.size = 1 << 50
        tar.fileobj.write(info.tobuf(tarfile.GNU_FORMAT))
    with pytest.raises(DataError, match=r"member 'a.png' is said to have 1125899906842624 bytes"):
        list(read_members(tmp_path / "s.tar"))


def test_an_extended_header_that_claims_much_is_refused(tmp_path):
    shard = write_tar(tmp_path / "s.tar", [("n" * 70_000, b"x")])
    with pytest.raises(DataError, match="a header before a member has 70001 bytes"):
        list(read_members(shard))

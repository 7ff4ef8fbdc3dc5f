"""What an uncompressed tar file holds, told from its headers alone; nothing is unpacked and no content is read.

A damaged or cut file is refused: Python's ``tarfile`` ends such a listing in silence, and samples would be missing.

Source: POSIX.1-2017, pax (ustar and extended headers); GNU tar manual, long names.
"""

from __future__ import annotations

import re
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from medsam_tune.errors import DataError

_BLOCK = tarfile.BLOCKSIZE
# Of an extended header or a long name.
_LONGEST_EXTRA = 1 << 16
_FILE_KINDS = (tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.CONTTYPE)
_UNSAFE = re.compile(r"[\x00-\x1f\x7f\\\ud800-\udfff]")
_EXTRA_KINDS = (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE, tarfile.XGLTYPE, tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK)


class Member(NamedTuple):
    """Name a file in a tar file, the offset of its first byte, and its size in bytes."""

    name: str
    offset: int
    size: int


def read_members(shard: Path) -> Iterator[Member]:
    """Yield the files of a tar file in their order; folders are left out.

    Raises:
        DataError: If the file cannot be read, is compressed, damaged or cut off, or holds links or names that are no plain
            paths below a folder; the message names the shard and the member.
    """
    try:
        with shard.open("rb") as file:
            yield from _members(shard, file, shard.stat().st_size)
    except OSError as error:
        raise DataError(f"{shard}: cannot be read ({error.strerror}). Allow it, or remove it.") from error


def _members(shard: Path, file: BinaryIO, total: int) -> Iterator[Member]:
    position, last = 0, "the beginning"
    extra: dict[str, str] = {}
    while True:
        file.seek(position)
        info = _header(shard, file.read(_BLOCK), position, last)
        if info is None:
            return
        offset = position + _BLOCK
        size = int(extra.get("size", info.size)) if extra.get("size", "0").isdecimal() else -1
        name = extra.get("path") or info.name
        held = size if info.type in (*_FILE_KINDS, *_EXTRA_KINDS) else 0
        if held < 0 or offset + held > total:
            raise DataError(
                f"{shard}: member {_shown(name)} is said to have {held} bytes, {total - offset} are left. The file is cut off "
                "or damaged: copy it again."
            )
        position = offset + -(-held // _BLOCK) * _BLOCK
        if info.type in _EXTRA_KINDS:
            extra |= _extra(shard, file.read(size) if size <= _LONGEST_EXTRA else None, info)
            continue
        if info.type != tarfile.DIRTYPE:
            last = _plain_name(shard, name, info, extra)
            yield Member(last, offset, size)
        extra = {}


def _header(shard: Path, block: bytes, position: int, last: str) -> tarfile.TarInfo | None:
    """Return what a block says, or None for the end mark."""
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.EOFHeaderError:  # type: ignore[attr-defined] # a block of zeros
        return None
    except tarfile.HeaderError as error:
        if position == 0:
            raise DataError(f"{shard}: is no uncompressed tar file ({error}). Unpack it if it is compressed.") from error
        raise DataError(
            f"{shard}: after member {_shown(last)} stands no header of a tar file ({error}). The file is cut off or damaged: "
            "copy it again."
        ) from error


def _extra(shard: Path, content: bytes | None, info: tarfile.TarInfo) -> dict[str, str]:
    """Return the path and the size that an extended header states."""
    if content is None:
        raise DataError(f"{shard}: a header before a member has {info.size} bytes. The file is damaged: copy it again.")
    if info.type == tarfile.GNUTYPE_LONGNAME:
        return {"path": content.rstrip(b"\0").decode("utf-8", "surrogateescape")}
    if info.type not in (tarfile.XHDTYPE, tarfile.SOLARIS_XHDTYPE):
        return {}
    found: dict[str, str] = {}
    while content:
        length, _, rest = content.partition(b" ")
        number = int(length) if length.isdigit() else 0
        if not len(length) + 1 < number <= len(content):
            raise DataError(f"{shard}: an extended header cannot be read. The file is damaged: copy it again.")
        key, _, value = rest[: number - len(length) - 2].partition(b"=")
        found[key.decode("utf-8", "replace")] = value.decode("utf-8", "surrogateescape")
        content = content[number:]
    return found


def _plain_name(shard: Path, name: str, info: tarfile.TarInfo, extra: dict[str, str]) -> str:
    if info.type not in _FILE_KINDS or any(key.startswith("GNU.sparse") for key in extra):
        raise DataError(f"{shard}: member {_shown(name)} is a link or no plain file. Pack the files themselves.")
    return check_name(shard, name.removeprefix("./"))


def check_name(place: Path, name: str) -> str:
    """Return a name that is a plain path below a folder.

    Args:
        place: The file that states it, for the message.
        name: Of a member or an image.

    Raises:
        DataError: If it is absolute, leaves the folder, or holds what no name should.
    """
    parts = name.split("/")
    if {"", ".", ".."} & set(parts) or not is_plain(name):
        raise DataError(f"{place}: member {_shown(name)} has no plain name below a folder. Rename it, and pack again.")
    return name


def is_plain(text: str) -> bool:
    """Tell whether a text holds nothing that no name should: control characters, backslashes, bytes that are no UTF-8."""
    return _UNSAFE.search(text) is None


def _shown(name: str) -> str:
    return repr(name if len(name) <= 100 else f"{name[:100]}...")
